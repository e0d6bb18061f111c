# The live log of a build: how fast a worker reads docker-buildx's progress, with ten secrets to mask and the stream on, how late a
# line is in Redis, and what a step that prints a hundred megabytes takes and leaves.
#
# For the reading, a docker-buildx of our own writes a recorded stream as fast as a pipe takes it. The rest is real: one step prints
# the time, another one the megabytes. A log without its first and last lines, or beyond its bound, stops the measurement.

class Logs
  READING_BAR = 200 # MB of progress a second
  LATENESS_BAR = 300 # ms
  PERIOD = 150 # ms; at most one batch in so long
  N_LINES = Figures.sized(4_000_000, 20_000)
  N_TIMES = Figures.sized(400, 20)
  N_SECRETS = 10
  N_BYTES = Figures.sized(100_000_000, 5_000_000) # what the long step prints
  MEMORY_BAR = 10 # MB more than before
  STREAM_BYTES = (2 << 20) * 5 / 4 # journal.build_bytes, and a quarter more
  NAME = 'acme/logs'

  def initialize(world, runs)
    @world = world
    @runs = runs
  end

  # The bars.
  def measure
    make_repository
    [reading_bar, *lateness_bars, memory_bar]
  end

  private

  def make_repository
    repository = Repository.new(@world.path('git'), @world.path('.'), NAME)
    FileUtils.mkdir_p(File.join(repository.tree, 'long'))
    repository.write('long/Dockerfile', <<~DOCKERFILE)
      ARG BASE
      FROM $BASE
      RUN echo the first line; yes 'compiling one more of very many files' | head -c #{N_BYTES}; echo; echo the last line
    DOCKERFILE
    repository.write('Dockerfile', <<~DOCKERFILE)
      ARG BASE
      FROM $BASE
      # The kernel's clock, in hundredths of a second.
      RUN i=0; while [ $i -lt #{N_TIMES} ]; do cut -d' ' -f1 /proc/uptime; i=$((i+1)); sleep 0.02; done
    DOCKERFILE
    @sha = repository.commit
  end

  # ---------------------------------------------------------------- reading

  def reading_bar
    write_stream
    secrets = Array.new(N_SECRETS) { |n| [:"SECRET_#{n}", "#{n}-#{Random.hex(12)}"] }.to_h
    ours, theirs = [], []
    @world.with(@world.start_worker('--config', settings, SIDEBAKE__BUILDX__BINARY: docker_buildx, **secrets)) do
      @runs.times do
        _, report = @world.build_of(job)
        ours << (megabytes / (report['timings']['bake_ms'] / 1000.0))
        theirs << (megabytes / Figures.seconds { read_pipe })
      end
    end
    print_reading(ours, theirs)
    mine, pipe = Figures.median(ours), Figures.median(theirs)
    Bar.new(name: 'reading progress', ours: format('%.0f MB/s', mine), theirs: format('the pipe alone %.0f MB/s', pipe),
            ratio: format('%.2f x', mine / pipe), asked: ">= #{READING_BAR} MB/s", is_met: mine >= READING_BAR)
  end

  # Grants the secrets. A script needs more than the sandbox allows.
  def settings
    grants = Array.new(N_SECRETS) { |n| %("acme/s#{n}" = "SECRET_#{n}") }
    @world.path('logs.toml').tap do |path|
      File.write(path, "sandbox.mode = \"off\"\naccounts.secret_variables = { #{grants.join(', ')} }\n")
    end
  end

  def read_pipe
    IO.popen([docker_buildx, 'bake'], err: %i[child out]) { |pipe| nil while pipe.read(65_536) }
  end

  def job
    secrets = Array.new(N_SECRETS) { |n| { 'id' => "s#{n}", 'from' => "s#{n}" } }
    @world.job(NAME, @sha, 'logs' => '.').tap { |job| job['application']['images'].first['secrets'] = secrets }
  end

  def megabytes = File.size(@world.path('progress')) / 1e6

  # As BuildKit sends it: some lines in each event.
  def write_stream
    at = '2026-11-24T04:05:56.123456789Z'
    name, digest = '[2/2] RUN make', "sha256:#{'a' * 64}"
    File.open(@world.path('progress'), 'w') do |file|
      file.puts JSON.generate(vertexes: [{ digest: digest, name: name, started: at }])
      (N_LINES / 20).times do |n|
        text = Array.new(20) { |k| "  CC    src/module_#{n}/file_#{k}.o with -O2 -Wall -Wextra -pedantic -std=c17\n" }.join
        file.puts JSON.generate(logs: [{ vertex: digest, stream: 1, data: [text].pack('m0'), timestamp: at }])
      end
      file.puts JSON.generate(vertexes: [{ digest: digest, name: name, started: at, completed: at }])
    end
  end

  # Resolves like the real one, and bakes by the recorded stream.
  def docker_buildx
    @world.path('docker-buildx').tap do |path|
      next if File.exist?(path)

      File.write(path, <<~SH)
        #!/bin/sh
        case "$*" in
          bake\\ *--print* | version*) exec #{World::BUILDX} "$@" ;;
          *) exec /bin/cat #{@world.path('progress')} >&2 ;;
        esac
      SH
      File.chmod(0o755, path)
    end
  end

  def print_reading(ours, theirs)
    puts '', format('logs: %.0f MB of progress, %d lines, %d secrets; MB/s: median (least-most)', megabytes, N_LINES, N_SECRETS)
    puts Figures.table(['sidebake', Figures.spread(ours)], ['the pipe alone', Figures.spread(theirs)])
  end

  # ---------------------------------------------------------------- lateness

  def lateness_bars
    late, pauses = [], []
    @world.with(@world.start_worker) do
      @runs.times do |n|
        job = @world.job(NAME, @sha, 'logs' => '.').merge('build_id' => "late-#{n}", 'no_cache' => true)
        @world.build_of(job)
        entries = @world.entries("sidebake:build:late-#{n}:events")
        late.concat(lateness(entries))
        pauses.concat(entries.map { |id, _| Integer(id[/\A\d+/]) }.each_cons(2).map { |early, later| later - early })
      end
    end
    p50, p99 = [0.5, 0.99].map { |part| late.sort[((late.size - 1) * part).round] }
    puts '', format('logs: a line printed, then in Redis: p50 %.0f ms, p99 %.0f ms; batches %d ms apart at least', p50, p99, pauses.min)
    [Bar.new(name: 'a line in Redis, p99', ours: format('%.0f ms', p99), theirs: '', ratio: '', asked: "<= #{LATENESS_BAR} ms",
             is_met: p99 <= LATENESS_BAR),
     Bar.new(name: 'time between batches', ours: "#{pauses.min} ms", theirs: '', ratio: '', asked: ">= #{PERIOD} ms",
             is_met: pauses.min >= PERIOD)]
  end

  # Milliseconds from each line's print to its entry. An entry's id has the time of Redis, which is this machine's.
  def lateness(entries)
    started = Process.clock_gettime(Process::CLOCK_REALTIME) - Process.clock_gettime(Process::CLOCK_BOOTTIME)
    entries.flat_map do |id, records|
      lines = records.select { |record| record['type'] == 'output' }.flat_map { |record| record['lines'] }
      lines.grep(/\A[\d.]+\z/).map { |line| Integer(id[/\A\d+/]) - ((started + Float(line)) * 1000) }
    end
  end

  # ---------------------------------------------------------------- memory

  def memory_bar
    before, after, seconds = nil
    @world.with(@world.start_worker) do |worker|
      @world.build_of(@world.job(NAME, @sha, 'small' => '.'))
      before = worker.peak
      seconds, = @world.build_of(@world.job(NAME, @sha, 'logs' => './long').merge('build_id' => 'long', 'no_cache' => true))
      after = worker.peak
    end
    n_bytes = expect_ends(@world.entries('sidebake:build:long:events'))
    more = after - before
    puts '', format('logs: a step prints %.0f MB in %.1f s; the stream keeps %.1f MB', N_BYTES / 1e6, seconds, n_bytes / 1e6)
    Bar.new(name: 'memory for long output', ours: format('%.1f MB more', more), theirs: '', ratio: '',
            asked: "<= #{MEMORY_BAR} MB", is_met: more <= MEMORY_BAR)
  end

  # Bytes of the log, which has the first and the last line of the long step, and a mark for the gap.
  def expect_ends(entries)
    n_bytes = entries.sum { |_, records| JSON.generate(records).bytesize }
    of_step = entries.flat_map(&:last).select { |record| record['step'].to_s.include?('very many files') }
    lines = of_step.flat_map { |record| record['lines'].is_a?(Array) ? record['lines'] : [] }
    ends = lines.values_at(0, -1)
    raise Unmeasurable, "the log of a long step has the ends #{ends}" unless ends == ['the first line', 'the last line']
    raise Unmeasurable, 'the log of a long step has no mark for its gap' unless of_step.any? { |record| record['type'] == 'missing' }
    raise Unmeasurable, "the log of a long step has #{n_bytes} bytes" if n_bytes > STREAM_BYTES

    n_bytes
  end
end
