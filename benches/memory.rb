# Resident memory of a worker that has nothing to do: soon after its start, and after some jobs.

class Memory
  BAR = 20 # MB of 1,000,000 bytes
  REST = 5 # seconds
  N_JOBS = 200

  def initialize(world, runs)
    @world = world
    @runs = runs
  end

  # The bars.
  def measure
    @ours, @theirs = Hash.new { |all, state| all[state] = [] }, Hash.new { |all, state| all[state] = [] }
    @runs.times { measure_once }
    print_figures
    [bar('memory after the start', :started), bar("memory after #{N_JOBS} jobs", :worked)]
  end

  private

  # Both at the same time: they take nothing from each other, since they have queues of their own.
  def measure_once
    @world.with(@world.start_worker) do |worker|
      @world.with(@world.start_ruby(queue: 'ruby')) do |ruby|
        sleep REST
        note(:started, worker, ruby)
        %w[default ruby].each { |queue| work(queue) }
        note(:worked, worker, ruby)
      end
    end
  end

  def work(queue)
    N_JOBS.times { @world.until_callback { @world.push_probe(queue: queue) } }
  end

  def note(state, worker, ruby)
    @ours[state] << worker.resident
    @theirs[state] << ruby.resident
  end

  def print_figures
    states = %i[started worked]
    row = ->(name, side, field) { [name, *states.map { |state| Figures.spread(side[state].map(&field), 1) }] }
    puts '', 'memory: resident in an idle worker; MB: median (least-most)'
    puts Figures.table(
      ['', "#{REST} s after the start", "after #{N_JOBS} jobs"],
      row['sidebake', @ours, :first],
      row['  of it without a file behind it', @ours, :last],
      row["Ruby's Sidekiq without an application", @theirs, :first]
    )
  end

  def bar(name, state)
    ours, theirs = [@ours, @theirs].map { |side| Figures.median_of(side[state], &:first) }
    Bar.new(name: name, ours: format('%.1f MB', ours), theirs: format("Ruby's %.1f MB", theirs),
            ratio: Figures.times(ours, theirs), asked: "<= #{BAR} MB", is_met: ours <= BAR)
  end
end
