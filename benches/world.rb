# The environment of the measurements: Redis, GitHub's stand-in, a repository, the workers, and the Rails side of a job.
#
# Every process logs to the directory, and `stop` ends it. Other files decide what to measure.

require 'etc'
require 'sidekiq'
require 'socket'
require 'timeout'
require_relative 'figures'
require_relative 'repository'

# The queue of callbacks. Redis serves clients in the order in which they began to wait, so the answer comes at once.
class Callbacks
  PATIENCE = 300 # seconds

  def initialize(port)
    @socket = TCPSocket.new('127.0.0.1', port)
    @socket.setsockopt(Socket::IPPROTO_TCP, Socket::TCP_NODELAY, 1)
  end

  # Starts to wait. Call it before the action that leads to the callback.
  def listen
    @socket.write("BRPOP queue:callbacks #{PATIENCE}\r\n")
  end

  # The argument of the callback.
  def receive
    raise Unmeasurable, "no callback arrived within #{PATIENCE} s" unless @socket.gets == "*2\r\n"

    _queue, text = Array.new(2) { @socket.read(Integer(@socket.gets.delete_prefix('$')) + 2) }
    JSON.parse(text)['args'].first
  end
end

# A process with its own log. `stop` ends its process group.
class Service
  attr_reader :pid, :log

  # Removes variables of the caller that could be settings.
  CLEAN = { 'PATH' => ENV.fetch('PATH'), 'HOME' => ENV.fetch('HOME'), 'LANG' => 'C.UTF-8' }.freeze

  def initialize(log, *command, **environment)
    @log = log
    out = [log, 'a']
    environment = CLEAN.merge(environment.transform_keys(&:to_s))
    @pid = Process.spawn(environment, *command, in: :close, %i[out err] => out, pgroup: true, unsetenv_others: true)
  end

  def alive? = Process.wait(@pid, Process::WNOHANG).nil?

  def stop
    signal('TERM')
    Timeout.timeout(10) { Process.wait(@pid) }
  rescue Timeout::Error
    signal('KILL')
    Process.wait(@pid)
  rescue Errno::ECHILD, Errno::ESRCH
    nil
  end

  # Megabytes of 1,000,000 bytes: all resident memory, and the part that no file backs.
  def resident
    status = File.read("/proc/#{@pid}/status")
    %w[VmRSS RssAnon].map { |field| status[/^#{field}:\s+(\d+) kB/, 1].to_i * 1024 / 1e6 }
  end

  # The peak of resident megabytes.
  def peak = File.read("/proc/#{@pid}/status")[/^VmHWM:\s+(\d+) kB/, 1].to_i * 1024 / 1e6

  # Processor seconds so far.
  def cpu
    user, system = File.read("/proc/#{@pid}/stat").rpartition(')').last.split.values_at(11, 12).map(&:to_f)
    (user + system) / Etc.sysconf(Etc::SC_CLK_TCK)
  end

  private

  def signal(name) = Process.kill(name, -@pid)
end

class World
  IMAGES = %w[vote result worker].freeze
  INSTALLATION = 7

  # benches/run sets these.
  REGISTRY, BASE_IMAGE, BUILDX = %w[REGISTRY BASE_IMAGE BUILDX].map { |name| ENV.fetch(name) }

  attr_reader :repository, :builder, :github_api, :git_host

  # `builder`: an Engine or a Cluster.
  def initialize(directory, builder)
    @directory = directory
    @builder = builder
    @services = []
  end

  def start
    start_redis
    start_github
    @repository = VotingApp.new(path('git'), @directory)
    write_settings
    @builder.start(self)
  end

  # Ends every started process, even after a failed start.
  def stop
    @services.reverse_each(&:stop)
    @builder.stop
  end

  def path(name) = File.join(@directory, name)

  # ---------------------------------------------------------------- workers

  def start_worker(*options, **environment)
    spawn('sidebake', path('sidebake'), 'run', '--config', path('sidebake.toml'), *options, **environment)
  end

  # The worker that sidebake replaces, without an application. `ruby`: a Ruby with Sidekiq.
  def start_ruby(ruby: RbConfig.ruby, queue: 'default', concurrency: 10)
    command = [ruby, '-S', 'sidekiq', '-r', File.join(__dir__, 'probe.rb'), '-q', queue, '-c', concurrency.to_s, '-t', '1']
    spawn('ruby', *command, REDIS_URL: redis_url)
  end

  # The Rust worker of another project.
  def start_rusty(concurrency, queue)
    spawn('rusty', path('rusty'), redis_url, concurrency.to_s, queue)
  end

  # Runs the block with the service, then ends the service.
  def with(service)
    yield service
  ensure
    dismiss(service)
  end

  def dismiss(service)
    service.stop
    @services.delete(service)
  end

  # ---------------------------------------------------------------- Redis

  # Pushes probes that end at once and have no callback, of so many accounts in turn.
  def push_many(queue, n, n_accounts = 1)
    script = <<~LUA
      redis.call('SADD', 'queues', ARGV[1])
      for i = 1, tonumber(ARGV[2]) do
        redis.call('LPUSH', 'queue:' .. ARGV[1], string.format('{"class":"Sidebake::Probe","args":[{"outcome":"succeed","account":"account-%d"}],"retry":true,"queue":"%s","jid":"%024x","created_at":1.5,"enqueued_at":1.5}', i % ARGV[3], ARGV[1], i))
      end
    LUA
    redis('EVAL', script, '0', queue, n.to_s, n_accounts.to_s)
  end

  # Removes all jobs of a queue.
  def empty(queue) = redis('DEL', "queue:#{queue}")

  # Processor seconds of Redis so far.
  def redis_cpu = redis('INFO', 'cpu').scan(/^used_cpu_(?:sys|user):([\d.]+)/).flatten.sum(&:to_f)

  # Jobs that have ended, in Sidekiq's statistics.
  def n_processed = redis('GET', 'stat:processed').to_i

  def length(queue) = redis('LLEN', "queue:#{queue}")

  # Reads from sockets so far. They equal round trips, because no client here sends a second request before the first
  # reply. A pipeline counts once.
  def reads = redis('INFO', 'stats')[/^total_reads_processed:(\d+)/, 1].to_i

  # Milliseconds of a single request and its reply, as for the jobs of Speed. After a rest a processor first has to wake
  # up, which takes longer than everything else.
  def round_trip(rest)
    times = Array.new(200) do
      sleep rest
      Figures.seconds { redis('PING') }
    end
    Figures.median(times) * 1000
  end

  # The entries of a build's log: their ids and records.
  def entries(key)
    entries = Sidekiq.redis { |redis| redis.call('XRANGE', key, '-', '+') }
    entries.map { |id, fields| [id, JSON.parse(Hash[*fields]['records'])] }
  end

  # Elements that redis-benchmark can pop per second.
  def pops
    output, = Open3.capture2e('redis-benchmark', '-p', @port.to_s, '-c', '10', '-n', '200000', '-q', 'rpop', 'nothing')
    output[/([\d.]+) requests per second/, 1].to_f
  end

  # ---------------------------------------------------------------- Rails' two ends

  # Seconds from the call of the block to the callback of the last pushed job, and the callback.
  def until_callback
    @callbacks.listen
    started = Figures.now
    yield
    report = @callbacks.receive
    seconds = Figures.now - started
    # rusty-sidekiq does not give a job its jid.
    raise Unmeasurable, "the callback belongs to another job: #{report}" unless [@jid, nil].include?(report['jid'])

    [seconds, report]
  end

  # Milliseconds from the push of each probe to its callback. The next one comes after the gap, in seconds.
  def arrivals(queue, n, gap)
    Array.new(n) do
      seconds, = until_callback { push_probe(queue: queue) }
      sleep gap
      seconds * 1000
    end
  end

  # Seconds from a build job to its callback, and the report.
  def build(sha) = build_of(build_job(sha))

  # The same for the argument of a job.
  def build_of(job)
    seconds, report = until_callback { push('BuildJob', job) }
    return [seconds, report] if report['status'] == 'succeeded'

    raise Unmeasurable, "a build has #{report['status']}: #{report['message']}"
  end

  # The reports of jobs pushed together, and the seconds until the last report.
  def build_together(jobs)
    started = Figures.now
    jobs.each { |job| push('BuildJob', job) }
    reports = jobs.map do
      @callbacks.listen
      @callbacks.receive
    end
    seconds = Figures.now - started
    failed = reports.find { |report| report['status'] != 'succeeded' }
    raise Unmeasurable, "a build has #{failed['status']}: #{failed['message']}" if failed

    [seconds, reports]
  end

  # Seconds from a job to its callback while other jobs run, which were pushed two seconds earlier, and all reports.
  def build_beside(others, job)
    others.each { |other| push('BuildJob', other) }
    sleep 2
    started, seconds = Figures.now, nil
    jid = push('BuildJob', job)
    reports = Array.new(others.size + 1) do
      @callbacks.listen
      report = @callbacks.receive
      seconds = Figures.now - started if report['jid'] == jid
      report
    end
    failed = reports.find { |report| report['status'] != 'succeeded' }
    raise Unmeasurable, "a build has #{failed['status']}: #{failed['message']}" if failed

    [seconds, reports]
  end

  # Builds each job again as soon as it has ended, for so many seconds. The first ones begin `gap` seconds after each
  # other. Returns the reports in their order.
  def build_unbroken(jobs, seconds, gap)
    started, running, reports = Figures.now, jobs.size, []
    starter = Thread.new { jobs.each_value { |job| sleep gap if push('BuildJob', job) } }
    until running.zero?
      @callbacks.listen
      report = @callbacks.receive
      raise Unmeasurable, "a build has #{report['status']}: #{report['message']}" if report['status'] != 'succeeded'

      reports << report
      is_over = Figures.now - started >= seconds
      is_over ? running -= 1 : push('BuildJob', jobs.fetch(report['repository']))
    end
    starter.join
    reports
  end

  def push_probe(queue: 'default')
    callback = { 'class' => 'BuildFinishedJob', 'queue' => 'callbacks' }
    push('Sidebake::Probe', { 'outcome' => 'succeed', 'callback' => callback }, queue: queue)
  end

  def tag(image, sha) = "#{REGISTRY}/acme/#{image}:#{sha}"

  # The argument of a job. `images` maps directories to images.
  def job(repository, sha, images)
    images = images.map do |name, context|
      { 'name' => name, 'context' => context, 'args' => { 'BASE' => BASE_IMAGE }, 'tags' => [tag(name, sha)] }
    end
    {
      'repository' => repository, 'installation_id' => INSTALLATION, 'sha' => sha,
      'application' => { 'images' => images }, 'callback' => { 'class' => 'BuildFinishedJob', 'queue' => 'callbacks' }
    }
  end

  # Runs a command of sidebake and waits for it.
  def sidebake(*arguments)
    output, status = Open3.capture2e(Service::CLEAN, path('sidebake'), *arguments, '--config', path('sidebake.toml'), unsetenv_others: true)
    status.success? or raise Unmeasurable, "sidebake #{arguments.join(' ')}: #{output}"
  end

  private

  def redis_url = "redis://127.0.0.1:#{@port}/0"

  # Sends one command on its own connection.
  def redis(*words)
    @redis ||= TCPSocket.new('127.0.0.1', @port).tap { |socket| socket.setsockopt(Socket::IPPROTO_TCP, Socket::TCP_NODELAY, 1) }
    @redis.write("*#{words.size}\r\n#{words.map { |word| "$#{word.bytesize}\r\n#{word}\r\n" }.join}")
    line = @redis.gets.chomp
    case line[0]
    when ':' then line[1..].to_i
    when '$' then line == '$-1' ? nil : @redis.read(line[1..].to_i + 2).chomp
    when '-' then raise Unmeasurable, "Redis says: #{line}"
    end
  end

  def push(name, argument, queue: 'default')
    @jid = Sidekiq::Client.push('class' => name, 'queue' => queue, 'args' => [argument])
  end

  def build_job(sha) = job(VotingApp::NAME, sha, IMAGES.to_h { |name| [name, "./#{name}"] })

  # ---------------------------------------------------------------- services

  def spawn(name, *command, **environment)
    Service.new(path("#{name}.log"), *command, **environment).tap { |service| @services << service }
  end

  # Another process may take the port first. Redis then exits, and the loop tries the next port.
  def start_redis
    FileUtils.mkdir(path('redis'))
    5.times do
      @port = TCPServer.open('127.0.0.1', 0) { |server| server.addr[1] }
      redis = spawn('redis', 'redis-server', '--port', @port.to_s, '--bind', '127.0.0.1', '--save', '',
                    '--appendonly', 'yes', '--dir', path('redis'))
      break if wait_until(10, redis) { redis_answers? }
    end
    raise Unmeasurable, "Redis did not start; its log is #{path('redis.log')}" unless redis_answers?

    connect
  end

  def redis_answers?
    TCPSocket.open('127.0.0.1', @port) { |socket| socket.puts('PING') || socket.gets.to_s.start_with?('+PONG') }
  rescue SystemCallError
    false
  end

  def connect
    # Debian 12's Redis client otherwise prints a deprecation warning on every push.
    Redis.sadd_returns_boolean = false if defined?(Redis) && Redis.respond_to?(:sadd_returns_boolean=)
    Sidekiq.configure_client { |config| config.redis = { url: redis_url } }
    @callbacks = Callbacks.new(@port)
  end

  def start_github
    github = spawn('github', path('world-github'), '--root', path('git'), '--app-id', '1',
                   '--installation-id', INSTALLATION.to_s, '--private-key', path('app.pem'),
                   '--ports-file', path('ports'))
    wait_until(20, github) { File.exist?(path('ports')) } or
      raise Unmeasurable, "the stand-in for GitHub did not start; its log is #{github.log}"
    @github_api, @git_host = File.readlines(path('ports')).map { |line| line.chomp.split('=', 2).last }
  end

  def wait_until(seconds, service)
    deadline = Figures.now + seconds
    until yield
      return false if Figures.now > deadline || !service.alive?

      sleep 0.02
    end
    true
  end

  # The defaults, except for the locations of things and one setting that a laptop's kernel may need.
  def write_settings
    File.write(path('sidebake.toml'), <<~TOML)
      redis.url = "#{redis_url}"
      state.directory = "#{path('state')}"
      shutdown.timeout = "1s"
      jobs.probe = true
      github = { api_url = "#{@github_api}", git_url = "#{@git_host}", app_id = "1", private_key_file = "#{path('app.pem')}" }
      buildx.binary = "#{BUILDX}"
      concurrency = 16
      sandbox = { mode = "best effort", registry_ports = [#{REGISTRY[/\d+\z/]}] }
      #{@builder.settings(@directory)}
    TOML
  end
end
