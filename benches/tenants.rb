# What fair shares cost, against the same worker that takes jobs in the order of the queue: empty jobs a second behind a backlog of
# 100,000, with 1, 10 and 1,000 accounts in it; jobs a second where fewer jobs wait than slots are free; and the latency of a job that
# comes alone.

class Tenants
  SLOTS = 10
  BACKLOG = Figures.sized(100_000, 3000)
  N_JOBS = Figures.sized(20_000, 1000)
  BURST = 8 # jobs, fewer than slots: nobody has to choose
  N_BURSTS = Figures.sized(2000, 20)
  N_ARRIVALS = Figures.sized(500, 10)
  GAP = 0.01 # seconds between jobs that come alone
  LOOK = 0.02 # seconds
  ACCOUNTS = [1, 10, 1000].freeze
  OFF = { SIDEBAKE__TENANTS__FAIR: 'false' }.freeze

  # One run: jobs per second, requests to Redis per job, and microseconds of Redis' processor per job.
  Rate = Struct.new(:jobs, :reads, :cpu)

  def initialize(world, runs)
    @world = world
    @runs = runs
  end

  # The bars.
  def measure
    @rates = Hash.new { |all, key| all[key] = [] }
    @bursts = Hash.new { |all, key| all[key] = [] }
    @waits = Hash.new { |all, key| all[key] = [] }
    @runs.times do
      ACCOUNTS.each { |n| [:order, :fair].each { |side| @rates[[side, n]] << rate(side, n) } }
      ACCOUNTS.each { |n| [:order, :fair].each { |side| @bursts[[side, n]] << bursts(side, n) } }
      [:order, :fair].each { |side| @waits[side].concat(alone(side)) }
    end
    print_figures
    bars
  end

  private

  def start(side) = @world.start_worker('-c', SLOTS.to_s, '-q', 'tenants', **(side == :order ? OFF : {}))

  # The clock runs while the first jobs of the backlog are taken.
  def rate(side, n_accounts)
    @world.push_many('tenants', BACKLOG, n_accounts)
    @world.with(start(side)) do
      sleep 0.001 until @world.length('tenants') < BACKLOG
      first, before, started = @world.length('tenants'), [@world.reads, @world.redis_cpu], Figures.now
      n_looks = 0
      while @world.length('tenants') > BACKLOG - N_JOBS
        n_looks += 1
        sleep LOOK
      end
      seconds, n = Figures.now - started, first - @world.length('tenants')
      reads, cpu = [@world.reads, @world.redis_cpu].zip(before).map { |late, early| late - early }
      Rate.new(n / seconds, (reads - n_looks) / n.to_f, cpu / n * 1e6)
    end
  ensure
    @world.empty('tenants')
  end

  # Jobs a second, each burst after the end of the one before.
  def bursts(side, n_accounts)
    @world.with(start(side)) do
      burst(n_accounts) # the first one finds no script in Redis
      started = Figures.now
      N_BURSTS.times { burst(n_accounts) }
      N_BURSTS * BURST / (Figures.now - started)
    end
  end

  def burst(n_accounts)
    goal = @world.n_processed + BURST
    @world.push_many('tenants', BURST, n_accounts)
    sleep 0.0001 until @world.n_processed >= goal
  end

  # Milliseconds from the push of a job to its callback.
  def alone(side)
    @world.with(start(side)) do
      arrivals(20) # the first ones find no script in Redis
      arrivals(N_ARRIVALS)
    end
  end

  def arrivals(n) = @world.arrivals('tenants', n, GAP)

  def median(side, n, field) = Figures.median_of(@rates[[side, n]], &field)

  def quantile(side, part) = Figures.quantile(@waits[side], part)

  def print_figures
    puts '', "tenants: empty jobs, #{SLOTS} slots, #{BACKLOG} jobs wait; jobs a second, requests to Redis and µs of its CPU for each"
    rows = { order: 'in the order of the queue', fair: 'fair' }.map do |side, name|
      cells = ACCOUNTS.map { |n| format('%.0f, %.2f, %.0f', *%i[jobs reads cpu].map { |field| median(side, n, field) }) }
      [name, *cells]
    end
    puts Figures.table(['', *ACCOUNTS.map { |n| "#{n} accounts" }], *rows)
  end

  def bars
    rates = ACCOUNTS.map do |n|
      ours, theirs = %i[fair order].map { |side| median(side, n, :jobs) }
      Bar.new(name: "jobs a second, #{n} accounts", ours: format('%.0f', ours), theirs: format('in order %.0f', theirs),
              ratio: format('%.2f x', theirs / ours), asked: '>= 0.5 of it', is_met: ours >= 0.5 * theirs)
    end
    bursts = ACCOUNTS.map do |n|
      ours, theirs = %i[fair order].map { |side| Figures.median(@bursts[[side, n]]) }
      Bar.new(name: "jobs a second without contention, #{n} accounts", ours: format('%.0f', ours),
              theirs: format('in order %.0f', theirs), ratio: format('%.2f x', theirs / ours), asked: '>= 0.9 of it',
              is_met: ours >= 0.9 * theirs)
    end
    waits = [0.5, 0.99].map do |part|
      ours, theirs = %i[fair order].map { |side| quantile(side, part) }
      Bar.new(name: "p#{(part * 100).to_i} of a job alone", ours: format('%.2f ms', ours), theirs: format('in order %.2f ms', theirs),
              ratio: Figures.times(ours, theirs), asked: '<= 1.1 of it', is_met: ours <= 1.1 * theirs)
    end
    rates + bursts + waits
  end
end
