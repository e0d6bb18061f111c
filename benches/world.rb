# What the measured things stand in: Redis, GitHub's stand-in, a repository, the workers, and Rails' two ends of a job.
#
# Every process has its log in the directory and is ended by `stop`. What is measured is not decided here.

require 'fileutils'
require 'json'
require 'open3'
require 'sidekiq'
require 'socket'
require 'timeout'
require_relative 'figures'

# Something did not do what it has to do before it can be measured; the message is for a person.
class Unmeasurable < StandardError; end

# The queue that callbacks arrive on. Redis keeps the order in which clients began to wait, so the answer comes at once.
class Callbacks
  PATIENCE = 300 # seconds

  def initialize(port)
    @socket = TCPSocket.new('127.0.0.1', port)
    @socket.setsockopt(Socket::IPPROTO_TCP, Socket::TCP_NODELAY, 1)
  end

  # Begins to wait. To be called before that which leads to the callback.
  def listen
    @socket.write("BRPOP queue:callbacks #{PATIENCE}\r\n")
  end

  # The argument of the callback.
  def receive
    raise Unmeasurable, "there was no callback within #{PATIENCE} s" unless @socket.gets == "*2\r\n"

    _queue, text = Array.new(2) { @socket.read(Integer(@socket.gets.delete_prefix('$')) + 2) }
    JSON.parse(text)['args'].first
  end
end

# A process with a log of its own; ended with its group.
class Service
  attr_reader :pid, :log

  # Nothing of the caller's environment could be a setting.
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

  # Megabytes of 1,000,000 bytes: all that is resident, and the part of it that no file backs.
  def resident
    status = File.read("/proc/#{@pid}/status")
    %w[VmRSS RssAnon].map { |field| status[/^#{field}:\s+(\d+) kB/, 1].to_i * 1024 / 1e6 }
  end

  private

  def signal(name) = Process.kill(name, -@pid)
end

# A repository on the git host, with a past, and a tree of it to make commits in.
class Repository
  NAME = 'acme/voting-app'
  # The application of docker/quickstart, with steps that wait SLOWNESS times as long: 8 s (shared by the images), 8 s
  # and 6 s. Its 90 seconds would be more like the article's, but nobody would wait for five runs of each side.
  TEMPLATE = File.expand_path('../docker/quickstart.d/voting-app', __dir__)
  SLOWNESS = 4
  # Some years of a product: what a clone in full brings, and a fetch of one commit does not. 96 MB that do not compress.
  N_PAST_COMMITS, PAST_BYTES = 3000, 32 << 10
  SOURCES = %w[vote/app.py result/views/index.html worker/src/main/java/worker/Worker.java].freeze

  attr_reader :tree

  def initialize(root, directory)
    @bare = File.join(root, "#{NAME}.git")
    @tree = File.join(directory, 'app')
    @log = File.join(directory, 'git.log')
    git('init', '--bare', @bare)
    git('-C', @bare, 'fast-import', input: past)
    git('clone', @bare, @tree)
    FileUtils.cp_r("#{TEMPLATE}/.", @tree)
    slow_down
  end

  # A commit of which no step is in any build cache: its first step copies a file that has never been.
  def commit_that_is_new
    Dir[File.join(@tree, '*/packages.txt')].each { |file| File.write(file, "locked at #{Time.now.to_f}\n") }
    commit
  end

  # A commit with a change in one source file of each image.
  def commit_of_changes
    SOURCES.each { |file| File.write(File.join(@tree, file), "changed at #{Time.now.to_f}\n") }
    commit
  end

  # A commit with a change that is in no image.
  def commit_beside_the_images
    File.write(File.join(@tree, 'README'), "written at #{Time.now.to_f}\n")
    commit
  end

  private

  # Every commit replaces one of 50 files, as `git fast-import` reads it.
  def past
    random = Random.new(1)
    commits = (1..N_PAST_COMMITS).map do |n|
      "commit refs/heads/main\ncommitter benches <benches@localhost> #{1_600_000_000 + n} +0000\ndata 4\npast\n" \
        "M 100644 inline assets/#{n % 50}\ndata #{PAST_BYTES}\n#{random.bytes(PAST_BYTES)}\n"
    end
    commits.join
  end

  def slow_down
    Dir[File.join(@tree, '*/Dockerfile')].each do |file|
      File.write(file, File.read(file).gsub(/(?<=sleep )[\d.]+/) { |seconds| (seconds.to_f * SLOWNESS).to_s })
    end
  end

  def commit
    git('-C', @tree, 'add', '.')
    git('-C', @tree, 'commit', '-m', 'A commit')
    git('-C', @tree, 'push', @bare, 'HEAD:refs/heads/main')
    `git -C #{@tree} rev-parse HEAD`.chomp
  end

  # The settings of the person at the keyboard (hooks, signing) are none of our business.
  def git(*arguments, input: '')
    environment = { 'GIT_CONFIG_GLOBAL' => '/dev/null', 'GIT_CONFIG_NOSYSTEM' => '1' }
    options = %w[-c init.defaultBranch=main -c user.name=benches -c user.email=benches@localhost]
    output, status = Open3.capture2e(environment, 'git', *options, *arguments, stdin_data: input, binmode: true)
    File.write(@log, output, mode: 'ab')
    status.success? or raise Unmeasurable, "git #{arguments.join(' ')} failed; its log is #{@log}"
  end
end

class World
  IMAGES = %w[vote result worker].freeze
  INSTALLATION = 7

  # What benches/run set up.
  DOCKER_HOST, REGISTRY, BASE_IMAGE, BUILDX =
    %w[DOCKER_HOST REGISTRY BASE_IMAGE BUILDX].map { |name| ENV.fetch(name) }

  attr_reader :repository, :github_api, :git_host

  def initialize(directory)
    @directory = directory
    @services = []
  end

  def start
    start_redis
    start_github
    @repository = Repository.new(path('git'), @directory)
    write_settings
  end

  # Ends whatever was started, also after half a start.
  def stop
    @services.reverse_each(&:stop)
  end

  def path(name) = File.join(@directory, name)

  # ---------------------------------------------------------------- workers

  def start_worker
    spawn('sidebake', path('sidebake'), 'run', '--config', path('sidebake.toml'))
  end

  # What sidebake replaces, without the application that it would load.
  def start_ruby(queue: 'default')
    command = [RbConfig.ruby, '-S', 'sidekiq', '-r', File.join(__dir__, 'probe.rb'), '-q', queue, '-c', '10', '-t', '1']
    spawn('ruby', *command, REDIS_URL: "redis://127.0.0.1:#{@port}/0")
  end

  # Runs the block with the service, and ends it.
  def with(service)
    yield service
  ensure
    dismiss(service)
  end

  def dismiss(service)
    service.stop
    @services.delete(service)
  end

  # ---------------------------------------------------------------- Rails' two ends

  # Seconds from the call of the block to the callback of the last job pushed, and what the callback says.
  def until_callback
    @callbacks.listen
    started = Figures.now
    yield
    report = @callbacks.receive
    seconds = Figures.now - started
    raise Unmeasurable, "the callback is of another job: #{report}" unless report['jid'] == @jid

    [seconds, report]
  end

  # Seconds of a build from the job to its callback, and the report.
  def build(sha)
    seconds, report = until_callback { push('BuildJob', build_job(sha)) }
    return [seconds, report] if report['status'] == 'succeeded'

    raise Unmeasurable, "a build has #{report['status']}: #{report['message']}"
  end

  def push_probe(queue: 'default')
    callback = { 'class' => 'BuildFinishedJob', 'queue' => 'callbacks' }
    push('Sidebake::Probe', { 'outcome' => 'succeed', 'callback' => callback }, queue: queue)
  end

  def tag(image, sha) = "#{REGISTRY}/acme/#{image}:#{sha}"

  private

  def push(name, argument, queue: 'default')
    @jid = Sidekiq::Client.push('class' => name, 'queue' => queue, 'args' => [argument])
  end

  def build_job(sha)
    images = IMAGES.map do |name|
      { 'name' => name, 'context' => "./#{name}", 'args' => { 'BASE' => BASE_IMAGE }, 'tags' => [tag(name, sha)] }
    end
    {
      'repository' => Repository::NAME, 'installation_id' => INSTALLATION, 'sha' => sha,
      'application' => { 'images' => images }, 'callback' => { 'class' => 'BuildFinishedJob', 'queue' => 'callbacks' }
    }
  end

  # ---------------------------------------------------------------- services

  def spawn(name, *command, **environment)
    Service.new(path("#{name}.log"), *command, **environment).tap { |service| @services << service }
  end

  # Somebody may take the port before Redis does; then it ends, and the next port is tried.
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
    # Debian 12's Redis client announces a change of its own on every push.
    Redis.sadd_returns_boolean = false if defined?(Redis) && Redis.respond_to?(:sadd_returns_boolean=)
    Sidekiq.configure_client { |config| config.redis = { url: "redis://127.0.0.1:#{@port}/0" } }
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

  # The defaults but for where things are, and one that a laptop's kernel may need.
  def write_settings
    File.write(path('sidebake.toml'), <<~TOML)
      redis.url = "redis://127.0.0.1:#{@port}/0"
      state.directory = "#{path('state')}"
      shutdown.timeout = "1s"
      jobs.probe = true
      github = { api_url = "#{@github_api}", git_url = "#{@git_host}", app_id = "1", private_key_file = "#{path('app.pem')}" }
      buildx.binary = "#{BUILDX}"
      builders.default = { driver = "docker", endpoint = "#{DOCKER_HOST}" }
      sandbox = { mode = "best effort", registry_ports = [#{REGISTRY[/\d+\z/]}] }
    TOML
  end
end
