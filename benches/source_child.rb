# sidebake's way to a commit's files: its source child, started as the worker does (src/source.rs). The sandbox is an
# argument, standard input has the request and the token, and the environment is empty.
#
# The call is always the same. The content of the mirror decides what the child has to do.

require 'json'
require 'open3'
require 'uri'

class SourceChild
  # The files that the worker lets it read (src/sandbox.rs).
  READ = [
    *Dir['/{lib64,lib/*-linux-gnu}/{libc.so.6,libgcc_s.so.1,libm.so.6,libresolv.so.2,libnss_*.so.2}'],
    *%w[/etc/resolv.conf /etc/hosts /etc/nsswitch.conf /etc/host.conf /etc/gai.conf /etc/services
        /etc/ssl/certs/ca-certificates.crt]
  ].freeze
  # The defaults of config/sidebake.toml.
  LIMITS = {
    connect_timeout_ms: 10_000, stall_timeout_ms: 30_000, max_entries: 500_000, max_tree_bytes: 8 << 30,
    max_file_bytes: 2 << 30, max_fetch_bytes: 4 << 30, timeout_s: 600, taken: { n_entries: 0, n_bytes: 0 }
  }.freeze

  def initialize(binary, token)
    @binary = binary
    @token = token
  end

  def make_mirror(home) = FileUtils.mkdir(File.join(home, 'mirror'))

  def cold(home, url, sha)
    make_mirror(home)
    warm(home, url, sha)
  end

  def warm(home, url, sha)
    mirror, stage = %w[mirror stage].map { |name| File.join(home, name) }
    FileUtils.mkdir(stage)
    request = {
      url: url, token: @token, revision: { sha: sha }, since: [], is_verified: false, mirror: mirror, stage: stage, limits: LIMITS,
      certificates: ['/etc/ssl/certs/ca-certificates.crt'], proxy: nil, git_dir: nil
    }
    arguments = ['source-child', JSON.generate(sandbox([mirror, stage], URI(url).port)), Process.pid.to_s]
    output, status = Open3.capture2e({}, @binary, *arguments, stdin_data: JSON.generate(request), unsetenv_others: true)
    status.success? or raise Unmeasurable, "the source child failed: #{output.lines.last}"
    # As the worker does with the files of its child.
    File.rename(File.join(stage, 'tree'), File.join(home, 'tree'))
    FileUtils.rm_r(stage)
  end

  alias again warm

  private

  def sandbox(directories, port)
    {
      enforcement: 'BestEffort', system: READ, execute: [], read: [], write: [*directories, '/dev/null'], sockets: { Tcp: [port] },
      limits: { data_bytes: 4 << 30, cpu_seconds: 600, file_bytes: 4 << 30, stack_bytes: nil }
    }
  end
end
