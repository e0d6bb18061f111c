//! Tries every known way out of the sandbox and records how each attempt ends.
//!
//! Runs as `sandbox-probe GROUND OUT`, or in place of `docker-buildx`. In place of `docker-buildx`, it finds the ground
//! in the context of the first target and writes the table into its `TMPDIR`. The ground is JSON ([`Ground`]); the
//! table has a line for each attempt, `name: outcome`. Attempts that could do harm use arguments that have no effect.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

use std::fs::{self, File};
use std::io::{Error, ErrorKind, Result, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

use serde::Deserialize;
use world::definition;

/// What the probe tries, and where it finds it.
#[derive(Deserialize)]
struct Ground {
    /// `print` or `solve`, when it runs in place of `docker-buildx`.
    stage: String,
    /// The probe's own directory.
    own: Option<PathBuf>,
    /// A file of the repository that the job builds.
    source: Option<PathBuf>,
    key: PathBuf,
    configuration: PathBuf,
    other_job: PathBuf,
    other_mirror: PathBuf,
    program: PathBuf,
    worker: i32,
    sibling: i32,
    allowed_port: u16,
    refused_port: u16,
    socket: PathBuf,
    abstract_socket: String,
    variable: String,
    /// Whether the sandbox lets the loader through for the probe.
    loader_is_given: bool,
    /// Descriptors that the parent of the worker left open for all its children.
    inherited: Vec<usize>,
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let text: Vec<&str> = args.iter().map(String::as_str).collect();
    match text.as_slice() {
        ["version"] => println!("github.com/docker/buildx 0.29.1+probe 0"),
        ["bake", rest @ ..] => bake(rest),
        ["by the loader", out] => Table::go_on(out).end(out),
        [ground, out] => probe(Path::new(ground), Path::new(out)),
        _ => panic!("no such use: {args:?}"),
    }
}

fn read(ground: &Path) -> Ground {
    serde_json::from_slice(&fs::read(ground).unwrap()).unwrap()
}

/// As `docker-buildx`: resolves by the rules of the scripted one, and probes at the requested stage.
fn bake(arguments: &[&str]) {
    let file = arguments.iter().position(|argument| *argument == "--file").expect("a definition") + 1;
    let text = fs::read_to_string(arguments[file]).unwrap();
    let is_print = arguments.contains(&"--print");
    let names: Vec<String> = serde_json::from_str::<serde_json::Value>(&text).unwrap()["target"]
        .as_object()
        .unwrap()
        .keys()
        .cloned()
        .collect();
    let printed = definition::resolve(&text, &names).unwrap_or_else(|error| fail(&error));
    let ground = Path::new(printed["target"][&names[0]]["context"].as_str().unwrap()).join("ground.json");
    let stage = read(&ground).stage;
    if stage == if is_print { "print" } else { "solve" } {
        let table = directory(&ground).join("table");
        probe(&ground, &table);
    }
    if !is_print {
        fail("it has nothing to do");
    }
    println!("{printed}");
}

/// The probe's own directory. A child that resolves a definition does not receive it, but a job's directories are
/// known.
fn directory(ground: &Path) -> PathBuf {
    let of_job = || ground.ancestors().nth(4).unwrap().join("print/tmp");
    std::env::var_os("TMPDIR").map_or_else(of_job, PathBuf::from)
}

fn fail(message: &str) -> ! {
    eprintln!("ERROR: {message}");
    exit(1)
}

/// Fills the table, then waits for KILL: the job removes its directory at the end, so the test reads the table first.
fn probe(ground_path: &Path, out: &Path) {
    let open = open_files();
    let ground = read(ground_path);
    let is_left = open.iter().any(|file| !ground.inherited.contains(file));
    let inherited = if is_left { Ok(()) } else { Err(errno(libc::EBADF)) };
    let mut table = Table(File::create(out).unwrap());
    table.tell("a variable of the worker", std::env::var(&ground.variable).map(drop).map_err(|_| errno(libc::ENOENT)));
    table.tell("a file that the worker has open", inherited);
    let own = ground.own.clone().unwrap_or_else(|| directory(ground_path));
    files(&mut table, &ground, &own);
    table.tell("empty a file that it may only read", empty(ground_path, libc::O_RDONLY));
    table.tell("empty another's file, open for neither", empty(&ground.program, libc::O_ACCMODE));
    table.tell("open by a call with hidden flags", tried(libc::SYS_openat2, [HERE, 0, 0, 0, 0, 0]));
    programs(&mut table, &ground, &own);
    sockets(&mut table, &ground);
    processes(&mut table, &ground);
    system(&mut table, &own);
    // The remaining attempts may replace this process.
    let copy = own.join("probe");
    if ground.loader_is_given {
        table.end(&out.to_string_lossy());
    }
    fs::copy(std::env::current_exe().unwrap_or_else(|_| std::env::args_os().next().unwrap().into()), &copy).unwrap();
    let loader =
        if cfg!(target_arch = "aarch64") { "/lib/ld-linux-aarch64.so.1" } else { "/lib64/ld-linux-x86-64.so.2" };
    let error = Command::new(loader).arg(&copy).arg("by the loader").arg(out).exec();
    table.tell("become a file that can be read, by the loader", Err(error));
    table.end(&out.to_string_lossy());
}

struct Table(File);

impl Table {
    fn go_on(out: &str) -> Self {
        let mut table = Self(File::options().append(true).open(out).unwrap());
        table.tell("become a file that can be read, by the loader", Ok(()));
        table
    }

    fn tell(&mut self, name: &str, outcome: Result<()>) {
        let outcome = match outcome {
            Ok(()) => "ok".to_owned(),
            Err(error) if error.kind() == ErrorKind::Other => error.to_string(),
            Err(error) => name_of(error.raw_os_error().unwrap_or_default()),
        };
        writeln!(self.0, "{name}: {outcome}").unwrap();
    }

    /// Tries a shell last, because it replaces this process. A shell that starts reports itself.
    fn end(mut self, out: &str) -> ! {
        let script = format!("echo 'become a shell: ok' >>'{out}'; echo end >>'{out}'; exec sleep 100");
        let error = Command::new("/bin/sh").args(["-c", &script]).exec();
        self.tell("become a shell", Err(error));
        writeln!(self.0, "end").unwrap();
        loop {
            std::thread::sleep(std::time::Duration::from_secs(100));
        }
    }
}

fn name_of(code: i32) -> String {
    let names = [
        (libc::EACCES, "EACCES"),
        (libc::EPERM, "EPERM"),
        (libc::ENOENT, "ENOENT"),
        (libc::EINVAL, "EINVAL"),
        (libc::EFAULT, "EFAULT"),
        (libc::ESRCH, "ESRCH"),
        (libc::EBADF, "EBADF"),
        (libc::ENOSYS, "ENOSYS"),
        (libc::ENOTTY, "ENOTTY"),
        (libc::ENOMEM, "ENOMEM"),
        (libc::EXDEV, "EXDEV"),
        (libc::ENOEXEC, "ENOEXEC"),
        (libc::ENODATA, "ENODATA"),
        (libc::EAFNOSUPPORT, "EAFNOSUPPORT"),
        (libc::EPROTONOSUPPORT, "EPROTONOSUPPORT"),
        (libc::ESOCKTNOSUPPORT, "ESOCKTNOSUPPORT"),
        (libc::EOPNOTSUPP, "EOPNOTSUPP"),
        (libc::ECONNREFUSED, "ECONNREFUSED"),
    ];
    names.iter().find(|(known, _)| *known == code).map_or_else(|| format!("error {code}"), |(_, name)| (*name).into())
}

fn errno(code: i32) -> Error {
    Error::from_raw_os_error(code)
}

fn other(words: &str) -> Result<()> {
    Err(Error::other(words.to_owned()))
}

/// Makes any system call and returns its result.
fn call(number: i64, a: [usize; 6]) -> Result<i64> {
    // SAFETY: the arguments are numbers, null, or pointers to values that live as long as the call.
    #[allow(unsafe_code)]
    let returned = unsafe { libc::syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]) };
    if returned < 0 { Err(Error::last_os_error()) } else { Ok(returned) }
}

fn tried(number: i64, a: [usize; 6]) -> Result<()> {
    call(number, a).map(drop)
}

fn opened(number: i64, a: [usize; 6]) -> Result<OwnedFd> {
    let file = i32::try_from(call(number, a)?).unwrap();
    // SAFETY: the kernel has just returned it, and nothing else owns it.
    #[allow(unsafe_code)]
    Ok(unsafe { OwnedFd::from_raw_fd(file) })
}

fn c_path(path: &Path) -> std::ffi::CString {
    std::ffi::CString::new(path.to_str().unwrap()).unwrap()
}

/// Truncates while it opens, without a right to write.
fn empty(path: &Path, access: i32) -> Result<()> {
    let path = c_path(path);
    let flags = (access | libc::O_TRUNC) as usize;
    tried(libc::SYS_openat, [HERE, path.as_ptr() as usize, flags, 0, 0, 0])
}

const HERE: usize = libc::AT_FDCWD as usize;

/// All open files except the standard streams. Call it before the probe opens a file itself.
fn open_files() -> Vec<usize> {
    (3..1024).filter(|file| call(libc::SYS_fcntl, [*file, libc::F_GETFD as usize, 0, 0, 0, 0]).is_ok()).collect()
}

fn files(table: &mut Table, ground: &Ground, own: &Path) {
    let write = |path: &Path| File::options().append(true).create(true).open(path)?.write_all(b"x");
    let list = |path: &Path| fs::read_dir(path).map(drop);
    let file = own.join("file");
    table.tell("write into its own directory", write(&file).and_then(|()| fs::read(&file).map(drop)));
    table.tell("read a library", library().map(drop));
    table.tell("read another file of the libraries' directory", File::open("/usr/lib/os-release").map(drop));
    table.tell("read the loader's cache", File::open("/etc/ld.so.cache").map(drop));
    table.tell("read a device without end", File::open("/dev/urandom").map(drop));
    table.tell("use /dev/null", write(Path::new("/dev/null")));
    if let Some(source) = &ground.source {
        table.tell("read the worktree", File::open(source).map(drop));
        table.tell("write into the worktree", write(source));
    }
    table.tell("read the App key", File::open(&ground.key).map(drop));
    table.tell("read the configuration", File::open(&ground.configuration).map(drop));
    table.tell("read /etc/passwd", File::open("/etc/passwd").map(drop));
    table.tell("list another job's directory", list(&ground.other_job));
    table.tell("read another job's file", File::open(ground.other_job.join("secrets/0")).map(drop));
    table.tell("write into another job's directory", write(&ground.other_job.join("planted")));
    table.tell("read another repository's mirror", list(&ground.other_mirror));
    table.tell("write into another repository's mirror", write(&ground.other_mirror.join("planted")));
    table.tell("read its own environ in /proc", File::open("/proc/self/environ").map(drop));
    table.tell("read the worker's environ", File::open(format!("/proc/{}/environ", ground.worker)).map(drop));
    table.tell("read the memory of the worker", File::open(format!("/proc/{}/mem", ground.worker)).map(drop));
    table.tell("move a file to another job", fs::rename(&file, ground.other_job.join("planted")));
    table.tell("link the App key into its own directory", fs::hard_link(&ground.key, own.join("link")));
    let link = own.join("symbolic");
    let _ = std::os::unix::fs::symlink(&ground.key, &link);
    table.tell("read the App key through a symbolic link", File::open(&link).map(drop));
    let key = c_path(&ground.key);
    let key = key.as_ptr() as usize;
    let size = fs::metadata(&ground.key).map_or(0, |about| about.size()) as usize;
    table.tell("truncate another's file", tried(libc::SYS_truncate, [key, size, 0, 0, 0, 0]));
    table.tell("learn how large another's file is", fs::metadata(&ground.key).map(drop));
    table.tell("set the mode of another's file", set_mode(&ground.key));
    let about = fs::metadata(&ground.key).unwrap();
    let (uid, gid) = (about.uid() as usize, about.gid() as usize);
    table.tell("set the owner of another's file", tried(libc::SYS_fchownat, [HERE, key, uid, gid, 0, 0]));
    let name = std::ffi::CString::new("user.none").unwrap();
    table.tell(
        "set the attributes of another's file",
        tried(libc::SYS_removexattr, [key, name.as_ptr() as usize, 0, 0, 0, 0]),
    );
    // UTIME_OMIT leaves both times unchanged.
    let omitted = [0_i64, libc::UTIME_OMIT, 0, libc::UTIME_OMIT];
    table.tell(
        "set the times of another's file",
        tried(libc::SYS_utimensat, [HERE, key, omitted.as_ptr() as usize, 0, 0, 0]),
    );
    table.tell("open a device", File::open("/dev/zero").map(drop));
    let null = File::open("/dev/null").unwrap();
    let mut answer = [0_u8; 64];
    table.tell(
        "send a command to a device",
        tried(libc::SYS_ioctl, [null.as_raw_fd() as usize, 0x5401, answer.as_mut_ptr() as usize, 0, 0, 0]),
    );
    let device = own.join("device");
    let path = c_path(&device);
    let made = tried(
        libc::SYS_mknodat,
        [HERE, path.as_ptr() as usize, (libc::S_IFCHR | 0o600) as usize, libc::makedev(1, 5) as usize, 0, 0],
    );
    let is_device = fs::metadata(&device).is_ok_and(|about| about.file_type().is_char_device());
    table.tell("make a device", made.and_then(|()| if is_device { Ok(()) } else { other("no effect") }));
    table.tell("open a file by its number", tried(libc::SYS_open_by_handle_at, [HERE, 0, 0, 0, 0, 0]));
}

/// The C library of this machine.
fn library() -> Result<File> {
    let folders = ["/lib64", "/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu"];
    let opened = folders.map(|folder| File::open(Path::new(folder).join("libc.so.6")));
    opened.into_iter().find(|opened| !opened.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotFound)).unwrap()
}

/// Sets another mode and restores the first. Checks the mode, because the call can succeed without effect.
fn set_mode(path: &Path) -> Result<()> {
    let mode = || Ok::<_, Error>(fs::metadata(path)?.mode() as usize & 0o777);
    let name = c_path(path);
    let (before, name) = (mode()?, name.as_ptr() as usize);
    tried(libc::SYS_fchmodat, [HERE, name, before ^ 0o040, 0, 0, 0])?;
    let after = mode()?;
    tried(libc::SYS_fchmodat, [HERE, name, before, 0, 0, 0])?;
    if before == after { other("no effect") } else { Ok(()) }
}

/// Only starts programs. The kernel executes a file without a valid format up to the point where it notices.
fn programs(table: &mut Table, ground: &Ground, own: &Path) {
    let execute = |path: &Path| {
        let path = c_path(path);
        let list = [path.as_ptr() as usize, 0];
        tried(libc::SYS_execve, [path.as_ptr() as usize, list.as_ptr() as usize, list[1..].as_ptr() as usize, 0, 0, 0])
    };
    table.tell("execute another program", execute(&ground.program));
    let planted = own.join("planted");
    fs::write(&planted, "no program").unwrap();
    // By its descriptor, because this program is its own.
    let file = File::options().write(true).open(&planted).unwrap();
    tried(libc::SYS_fchmod, [file.as_raw_fd() as usize, 0o700, 0, 0, 0, 0]).unwrap();
    drop(file);
    table.tell("execute what it has written", execute(&planted));
    let name = std::ffi::CString::new("").unwrap();
    let empty = name.as_ptr() as usize;
    table
        .tell("make a file in memory, to execute it", opened(libc::SYS_memfd_create, [empty, 0, 0, 0, 0, 0]).map(drop));
    table.tell("make a process", Command::new("/bin/true").status().map(drop));
    table.tell("make a thread", std::thread::Builder::new().spawn(|| ()).map(|thread| thread.join().unwrap()));
}

fn socket(domain: i32, kind: i32, protocol: i32) -> Result<OwnedFd> {
    opened(libc::SYS_socket, [domain as usize, kind as usize, protocol as usize, 0, 0, 0])
}

fn sockets(table: &mut Table, ground: &Ground) {
    let local = |port: u16| ("127.0.0.1", port);
    table.tell("connect to its port", TcpStream::connect(local(ground.allowed_port)).map(drop));
    table.tell("connect to its port on another host", TcpStream::connect(("127.0.0.2", ground.allowed_port)).map(drop));
    table.tell("connect to Redis", TcpStream::connect(local(ground.refused_port)).map(drop));
    table.tell("connect to Redis by MPTCP", reach(ground, libc::IPPROTO_MPTCP));
    // SMC falls back to TCP.
    table.tell("connect to Redis by SMC", reach(ground, 256));
    table.tell("connect to Redis by TCP Fast Open", fast_open(ground));
    table.tell("listen on a TCP port", TcpListener::bind(local(0)).map(drop));
    table.tell("send a datagram", datagram(ground));
    table.tell("open a raw socket", socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP).map(drop));
    table.tell("open a packet socket", socket(libc::AF_PACKET, libc::SOCK_RAW, 0).map(drop));
    table.tell("open a SCTP socket", socket(libc::AF_INET, libc::SOCK_SEQPACKET, 0).map(drop));
    table.tell("open a VSOCK socket", socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0).map(drop));
    table.tell("ask for the addresses of this host", socket(libc::AF_NETLINK, libc::SOCK_RAW, 0).map(drop));
    table.tell("ask for all sockets of this host", socket(libc::AF_NETLINK, libc::SOCK_RAW, 4).map(drop));
    table.tell("connect to a Unix socket", UnixStream::connect(&ground.socket).map(drop));
    let name = SocketAddr::from_abstract_name(&ground.abstract_socket).unwrap();
    table.tell("connect to an abstract Unix socket", UnixStream::connect_addr(&name).map(drop));
    table.tell("make a pair of Unix streams", UnixStream::pair().map(drop));
    table.tell("make a pair of datagram sockets", UnixDatagram::pair().map(drop));
}

fn address(ground: &Ground) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: ground.refused_port.to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes([127, 0, 0, 1]) },
        sin_zero: [0; 8],
    }
}

fn reach(ground: &Ground, protocol: i32) -> Result<()> {
    let socket = socket(libc::AF_INET, libc::SOCK_STREAM, protocol)?;
    let address = address(ground);
    let size = size_of_val(&address);
    tried(libc::SYS_connect, [socket.as_raw_fd() as usize, (&raw const address) as usize, size, 0, 0, 0])
}

/// Connects with the first bytes, by a call other than `connect`.
fn fast_open(ground: &Ground) -> Result<()> {
    let socket = socket(libc::AF_INET, libc::SOCK_STREAM, 0)?;
    let (address, words) = (address(ground), b"PING\r\n");
    let size = size_of_val(&address);
    let flags = libc::MSG_FASTOPEN as usize;
    let (to, what) = ((&raw const address) as usize, words.as_ptr() as usize);
    tried(libc::SYS_sendto, [socket.as_raw_fd() as usize, what, words.len(), flags, to, size])
}

fn datagram(ground: &Ground) -> Result<()> {
    let socket = UdpSocket::bind(("127.0.0.1", 0))?;
    socket.send_to(b"x", ("127.0.0.1", ground.refused_port)).map(drop)
}

fn processes(table: &mut Table, ground: &Ground) {
    let (worker, sibling) = (ground.worker as usize, ground.sibling as usize);
    let own = std::process::id() as usize;
    table.tell("send a signal to itself", tried(libc::SYS_kill, [own, 0, 0, 0, 0, 0]));
    table.tell("send a signal to the worker", tried(libc::SYS_kill, [worker, 0, 0, 0, 0, 0]));
    table.tell("send a signal to another child", tried(libc::SYS_kill, [sibling, 0, 0, 0, 0, 0]));
    table.tell("send a signal to everybody", tried(libc::SYS_kill, [-1_isize as usize, 0, 0, 0, 0, 0]));
    table.tell("send a signal to a thread of the worker", tried(libc::SYS_tgkill, [worker, worker, 0, 0, 0, 0]));
    table.tell("signal the worker as the owner of a file", own_by_file(worker));
    table.tell("signal the worker as the owner of a socket", own_by_socket(worker));
    let pidfd = opened(libc::SYS_pidfd_open, [sibling, 0, 0, 0, 0, 0]).unwrap();
    let pidfd = pidfd.as_raw_fd() as usize;
    table.tell("send a signal by a descriptor", tried(libc::SYS_pidfd_send_signal, [pidfd, 0, 0, 0, 0, 0]));
    table.tell("take a file of another process", opened(libc::SYS_pidfd_getfd, [pidfd, 1, 0, 0, 0, 0]).map(drop));
    let attach = 0x4206; // PTRACE_SEIZE
    table.tell("trace another process", tried(libc::SYS_ptrace, [attach, sibling, 0, 0, 0, 0]));
    table.tell("read another process's memory", tried(libc::SYS_process_vm_readv, [sibling, 0, 0, 0, 0, 0]));
    let limits = [0_u64; 2];
    let old = limits.as_ptr() as usize;
    table.tell("read its own limits", tried(libc::SYS_prlimit64, [0, libc::RLIMIT_CPU as usize, 0, old, 0, 0]));
    table.tell(
        "read the limits of the worker",
        tried(libc::SYS_prlimit64, [worker, libc::RLIMIT_CPU as usize, 0, old, 0, 0]),
    );
    let all = [u64::MAX; 2];
    let new = all.as_ptr() as usize;
    table.tell("raise its memory limit", tried(libc::SYS_prlimit64, [0, libc::RLIMIT_DATA as usize, new, 0, 0, 0]));
    let private = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE) as usize;
    let data = (libc::PROT_READ | libc::PROT_WRITE) as usize;
    table.tell("use more memory", tried(libc::SYS_mmap, [0, 64 << 30, data, private, usize::MAX, 0]));
    let shared = (libc::MAP_SHARED | libc::MAP_ANONYMOUS) as usize;
    table.tell("use memory that is shared", tried(libc::SYS_mmap, [0, 4096, data, shared, usize::MAX, 0]));
    let growing = private | libc::MAP_GROWSDOWN as usize;
    table.tell("use memory that grows like a stack", tried(libc::SYS_mmap, [0, 4096, data, growing, usize::MAX, 0]));
    table.tell("set the priority of the worker", tried(libc::SYS_setpriority, [9, worker, 0, 0, 0, 0]));
    table.tell("leave its process group", tried(libc::SYS_setpgid, [usize::MAX, 0, 0, 0, 0, 0]));
    table.tell(
        "outlive the worker",
        tried(libc::SYS_prctl, [libc::PR_SET_PDEATHSIG as usize, libc::SIGKILL as usize, 0, 0, 0, 0]),
    );
    table.tell("make a shared memory segment", tried(libc::SYS_shmget, [0, 0, 0, 0, 0, 0]));
    table.tell("make a message queue", tried(libc::SYS_mq_open, [0, 0, 0, 0, 0, 0]));
}

/// Makes a process the owner of a file, which gets a signal of choice when the file is ready. The file here never is.
fn own_by_file(process: usize) -> Result<()> {
    let null = File::open("/dev/null")?;
    let command =
        |command: usize, value: usize| tried(libc::SYS_fcntl, [null.as_raw_fd() as usize, command, value, 0, 0, 0]);
    let (set_signal, set_owner_ex) = (10, 15);
    let owner = [1, i32::try_from(process).unwrap()]; // F_OWNER_PID
    let outcomes = [
        command(libc::F_SETOWN as usize, process),
        command(set_signal, libc::SIGTERM as usize),
        command(set_owner_ex, owner.as_ptr() as usize),
    ];
    one_of(outcomes)
}

/// The same by the commands of sockets.
fn own_by_socket(process: usize) -> Result<()> {
    let (socket, _other) = UnixStream::pair()?;
    let owner = i32::try_from(process).unwrap();
    let fiosetown_and_siocspgrp = [0x8901, 0x8902];
    one_of(fiosetown_and_siocspgrp.map(|command| {
        tried(libc::SYS_ioctl, [socket.as_raw_fd() as usize, command, (&raw const owner) as usize, 0, 0, 0])
    }))
}

/// Success if one of them succeeded.
fn one_of<const N: usize>(outcomes: [Result<()>; N]) -> Result<()> {
    outcomes.into_iter().reduce(|one, other| one.or(other)).unwrap()
}

fn system(table: &mut Table, own: &Path) {
    table.tell("make an io_uring", tried(libc::SYS_io_uring_setup, [1, 0, 0, 0, 0, 0]));
    table.tell("load a BPF program", tried(libc::SYS_bpf, [usize::MAX, 0, 0, 0, 0, 0]));
    table.tell("handle page faults", tried(libc::SYS_userfaultfd, [usize::MAX, 0, 0, 0, 0, 0]));
    table.tell("watch with perf", tried(libc::SYS_perf_event_open, [0, 0, 0, 0, 0, 0]));
    table.tell("mount", tried(libc::SYS_mount, [0, 1, 0, 0, 0, 0]));
    table.tell("unmount", tried(libc::SYS_umount2, [1, 0, 0, 0, 0, 0]));
    let directory = c_path(own);
    table.tell("change its root", tried(libc::SYS_chroot, [1, 0, 0, 0, 0, 0]));
    table.tell("open a mount", tried(libc::SYS_open_tree, [HERE, directory.as_ptr() as usize, usize::MAX, 0, 0, 0]));
    table.tell("make a namespace", tried(libc::SYS_unshare, [1, 0, 0, 0, 0, 0]));
    table.tell("enter a namespace", tried(libc::SYS_setns, [usize::MAX, 0, 0, 0, 0, 0]));
    table.tell("use the kernel's keyring", tried(libc::SYS_keyctl, [usize::MAX, 0, 0, 0, 0, 0]));
    // The same calls by other numbers, which no filter knows. Kernels have them off.
    table.tell("make calls of another ABI", tried(0x4000_0000 + libc::SYS_getuid, [0; 6]));
    table.tell(
        "gain rights by a program",
        match call(libc::SYS_prctl, [libc::PR_GET_NO_NEW_PRIVS as usize, 0, 0, 0, 0, 0]) {
            Ok(1) => other("kept"),
            other => other.map(drop),
        },
    );
    table.tell("use root's capabilities", capabilities());
}

/// Whether any capability is left except the one for files of other users.
fn capabilities() -> Result<()> {
    let header = [0x2008_0522_u32, 0];
    let mut sets = [0_u32; 6];
    tried(libc::SYS_capget, [header.as_ptr() as usize, sets.as_mut_ptr() as usize, 0, 0, 0, 0])?;
    let dac_override = 1 << 1;
    if sets[1] & !dac_override == 0 && sets[4] == 0 { other("none") } else { Ok(()) }
}
