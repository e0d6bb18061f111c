# From the start of the process to the callback of a job that waits in the queue.

class Boot
  BAR = 100 # ms

  def initialize(world, runs)
    @world = world
    @runs = runs
  end

  # The bars.
  def measure
    # Ignores the first start of each, because it reads its file from disk and finds no script in Redis.
    once(:start_worker)
    once(:start_ruby)
    ours, theirs = [], []
    @runs.times { ours << once(:start_worker) and theirs << once(:start_ruby) }
    puts '', 'boot: start of the process to the end of a waiting job; milliseconds: median (least-most)'
    puts Figures.table(['sidebake', Figures.spread(ours)], ["Ruby's Sidekiq without an application", Figures.spread(theirs)])
    [bar(*[ours, theirs].map { |values| Figures.median(values) })]
  end

  private

  # Milliseconds.
  def once(start)
    @world.push_probe
    service = nil
    seconds, = @world.until_callback { service = @world.public_send(start) }
    seconds * 1000
  ensure
    @world.dismiss(service) if service
  end

  def bar(ours, theirs)
    Bar.new(name: 'boot to the first job', ours: format('%.0f ms', ours), theirs: format("Ruby's %.0f ms", theirs),
            ratio: Figures.times(ours, theirs), asked: "<= #{BAR} ms", is_met: ours <= BAR)
  end
end
