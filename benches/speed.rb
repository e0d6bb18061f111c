# How many empty jobs a worker completes, at what cost, and how soon it starts a single job. Compares Ruby's Sidekiq and
# rusty-sidekiq, which take jobs with BRPOP and lose them when their process dies.

class Speed
  SLOTS = [5, 10, 20].freeze # the bars take 10
  N_JOBS = Figures.sized({ sidebake: 60_000, rusty: 60_000, ruby: 15_000 }, { sidebake: 2000, rusty: 2000, ruby: 1000 }).freeze
  N_ARRIVALS = Figures.sized(200, 10)
  N_IDLE = Figures.sized(100, 5)
  GAP = 0.01 # seconds between jobs that come alone
  LOOK = 0.02 # seconds
  REST = Figures.sized(5, 1) # seconds
  # A worker's requests come in bursts, such as those of the poller every five seconds.
  IDLE = Figures.sized(20, 1) # s
  N_MANY = Figures.sized(1_000_000, 5000)

  # One run: jobs per second, processor microseconds per job, and requests to Redis per job.
  Rate = Struct.new(:jobs, :cpu, :reads)

  def initialize(world, runs)
    @world = world
    @runs = runs
  end

  # The bars.
  def measure
    @rates = Hash.new { |all, key| all[key] = [] }
    @runs.times { SLOTS.each { |slots| N_JOBS.each_key { |side| @rates[[side, slots]] << rate(side, slots, N_JOBS[side]) } } }
    @round_trip = @world.round_trip(GAP)
    @waits = N_JOBS.keys.to_h { |side| [side, alone(side)] }
    @crowd = in_a_crowd
    @many = many
    print_figures
    bars
  end

  private

  def start(side, slots)
    case side
    when :sidebake then @world.start_worker('-c', slots.to_s, '-q', 'speed')
    when :rusty then @world.start_rusty(slots, 'speed')
    when :ruby then @world.start_ruby(ruby: ENV.fetch('SIDEKIQ_8'), queue: 'speed', concurrency: slots)
    end
  end

  # All jobs are queued before the worker starts. The clock runs from the first fetch to the last.
  def rate(side, slots, n)
    @world.push_many('speed', n)
    @world.with(start(side, slots)) do |worker|
      sleep 0.001 until @world.length('speed') < n
      rest, before, started = @world.length('speed'), [worker.cpu, @world.reads], Figures.now
      n_looks = 0
      while @world.length('speed').positive?
        n_looks += 1
        sleep LOOK
      end
      seconds = Figures.now - started
      cpu, reads = [worker.cpu, @world.reads].zip(before).map { |late, early| late - early }
      Rate.new(rest / seconds, cpu / rest * 1e6, (reads - n_looks) / rest.to_f)
    end
  end

  # Milliseconds from the push of a job to its callback, with one idle worker, and its requests in an idle second.
  def alone(side)
    @world.with(start(side, 10)) do
      arrivals(20) # the first ones find no script in Redis, and no code in the cache
      times = arrivals(N_ARRIVALS)
      before = @world.reads
      sleep IDLE
      { times: times, idle: (@world.reads - before - 1) / IDLE.to_f }
    end
  end

  def in_a_crowd
    workers = Array.new(N_IDLE) { start(:sidebake, 1) }
    arrivals(20)
    sleep REST # until the last of them has begun to wait
    arrivals(N_ARRIVALS)
  ensure
    workers&.each { |worker| @world.dismiss(worker) }
  end

  def arrivals(n) = @world.arrivals('speed', n, GAP)

  # Resident megabytes before and after many jobs.
  def many
    n = N_MANY / 10
    @world.push_many('speed', n)
    @world.with(start(:sidebake, 10)) do |worker|
      sizes = Array.new(10) do |i|
        @world.push_many('speed', n) if i.positive?
        sleep LOOK while @world.length('speed').positive?
        worker.resident.first
      end
      [sizes.first, sizes.last]
    end
  end

  def median(side, slots, field) = Figures.median_of(@rates[[side, slots]], &field)

  def best(side) = SLOTS.map { |slots| median(side, slots, :jobs) }.max

  def print_figures
    puts '', 'speed: empty jobs; with N slots: jobs a second, µs of the worker\'s CPU for each, requests to Redis for each'
    rows = N_JOBS.keys.map do |side|
      cells = SLOTS.map { |slots| format('%.0f, %.0f, %.2f', *%i[jobs cpu reads].map { |field| median(side, slots, field) }) }
      [side.to_s, *cells]
    end
    puts Figures.table(['', *SLOTS.map { |slots| "#{slots} slots" }], *rows)
    puts format('  redis-benchmark, ten clients that pop: %.0f a second', @world.pops)
    rows = @waits.map { |side, wait| [side.to_s, *quantiles(wait[:times]), format('%.1f', wait[:idle])] }
    rows << ["sidebake, #{N_IDLE} idle workers", *quantiles(@crowd), '']
    puts '', 'speed: one job that comes alone, push to callback; milliseconds'
    puts Figures.table(['', 'p50', 'p99', 'requests a second when idle'], *rows)
    puts format('  sidebake has %.1f MB resident after %d jobs, and %.1f MB after %d.', @many.first, N_MANY / 10, @many.last, N_MANY)
  end

  def quantiles(times) = [0.5, 0.99].map { |part| format('%.2f', Figures.quantile(times, part)) }

  def bars
    ours, rusty, ruby = %i[sidebake rusty ruby].map { |side| best(side) }
    cpu = %i[sidebake rusty].map { |side| median(side, 10, :cpu) }
    p50 = %i[sidebake rusty].map { |side| Figures.quantile(@waits[side][:times], 0.5) }
    p99 = [@waits[:sidebake][:times], @crowd].map { |times| Figures.quantile(times, 0.99) }
    reads = median(:sidebake, 10, :reads)
    idle = @waits[:sidebake][:idle]
    [
      faster('jobs a second, Ruby', ours, ruby, 4), faster('jobs a second, rusty', ours, rusty, 1.2),
      Bar.new(name: 'CPU of a job, 10 slots', ours: format('%.0f µs', cpu[0]), theirs: format('rusty %.0f µs', cpu[1]),
              ratio: Figures.times(*cpu), asked: '<= 1.2 of it', is_met: cpu[0] <= 1.2 * cpu[1]),
      Bar.new(name: 'requests of a job', ours: format('%.2f', reads), theirs: '', ratio: '', asked: '<= 1', is_met: reads <= 1),
      Bar.new(name: 'p50 of a job alone', ours: format('%.2f ms', p50[0]), theirs: format('rusty %.2f ms', p50[1]),
              ratio: Figures.times(*p50), asked: format('its + a round trip (%.2f ms)', @round_trip), is_met: p50[0] <= p50[1] + @round_trip),
      *['p99 of a job alone', "p99 of it, #{N_IDLE} idle"].zip(p99).map do |name, value|
        Bar.new(name: name, ours: format('%.2f ms', value), theirs: '', ratio: '', asked: '<= 10 ms', is_met: value <= 10)
      end,
      Bar.new(name: 'requests when idle', ours: format('%.1f/s', idle), theirs: '', ratio: '', asked: '<= 2/s', is_met: idle <= 2),
      Bar.new(name: "memory after #{N_MANY} jobs", ours: format('%.1f MB', @many.last), theirs: '', ratio: '',
              asked: '<= 20 MB, and flat', is_met: @many.last <= 20 && @many.last <= @many.first * 1.1)
    ]
  end

  def faster(name, ours, theirs, bar)
    Bar.new(name: name, ours: format('%.0f', ours), theirs: format('%.0f', theirs), ratio: format('%.2f x', theirs / ours),
            asked: ">= #{bar} of it", is_met: ours >= bar * theirs)
  end
end
