/*
 * buildkitd and buildctl for a pod with a Docker engine. Debian has no package of BuildKit, but its dockerd contains
 * BuildKit, and serves BuildKit's protocol on its socket after an HTTP upgrade.
 *
 *   buildkitd ...            executes dockerd and ignores the arguments for BuildKit
 *   buildctl dial-stdio      connects standard input and output to BuildKit; buildx uses this to connect to a pod
 *   buildctl debug workers   succeeds when BuildKit answers; the kubelet uses this as readiness probe
 */
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static const char SOCKET[] = "/var/run/docker.sock";
static const char UPGRADE[] =
    "POST /grpc HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 0\r\n\r\n";

/* Keeps its data where BuildKit keeps it. Without iptables, because the image has none, and a pod publishes no port. */
static int become_dockerd(void) {
  execlp("dockerd", "dockerd", "--data-root=/var/lib/buildkit", "--iptables=false", "--ip6tables=false",
         "--userland-proxy=false", NULL);
  perror("dockerd");
  return 127;
}

/* Returns 0 after writing everything. */
static int write_all(int to, const char *bytes, ssize_t n) {
  while (n > 0) {
    ssize_t written = write(to, bytes, n);
    if (written <= 0) return -1;
    bytes += written;
    n -= written;
  }
  return 0;
}

/* A connection to BuildKit, or -1. Reads the answer byte by byte, because BuildKit's own data follows it. */
static int dial(void) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  memcpy(address.sun_path, SOCKET, sizeof SOCKET);
  int buildkit = socket(AF_UNIX, SOCK_STREAM, 0);
  if (connect(buildkit, (struct sockaddr *)&address, sizeof address) ||
      write_all(buildkit, UPGRADE, sizeof UPGRADE - 1)) {
    perror(SOCKET);
    return -1;
  }
  char answer[4096] = "";
  size_t n = 0;
  while (!strstr(answer, "\r\n\r\n") && n < sizeof answer - 1 && read(buildkit, answer + n, 1) == 1) n++;
  if (strncmp(answer, "HTTP/1.1 101 ", 13)) {
    fprintf(stderr, "%s: no upgrade: %s\n", SOCKET, answer);
    return -1;
  }
  return buildkit;
}

/* Relays until BuildKit closes the connection. Passes the end of the input on, and still relays BuildKit's output. */
static int relay(int buildkit) {
  static char bytes[1 << 16];
  struct pollfd ends[2] = {{STDIN_FILENO, POLLIN, 0}, {buildkit, POLLIN, 0}};
  while (poll(ends, 2, -1) >= 0) {
    for (int i = 0; i < 2; i++) {
      if (!ends[i].revents) continue;
      int from_buildkit = i == 1;
      ssize_t n = read(ends[i].fd, bytes, sizeof bytes);
      if (n > 0) {
        if (write_all(from_buildkit ? STDOUT_FILENO : buildkit, bytes, n)) return 1;
      } else if (from_buildkit) {
        return 0;
      } else {
        shutdown(buildkit, SHUT_WR);
        ends[i].fd = -1;
      }
    }
  }
  return 1;
}

int main(int argc, char **argv) {
  const char *slash = strrchr(argv[0], '/');
  if (!strcmp(slash ? slash + 1 : argv[0], "buildkitd")) return become_dockerd();
  int buildkit = dial();
  if (buildkit < 0) return 1;
  return argc > 1 && !strcmp(argv[1], "dial-stdio") ? relay(buildkit) : 0;
}
