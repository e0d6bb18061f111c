# Resident memory of an idle worker, soon after its start and after some jobs. Also its peak while three builds write as
# much as they can, with a harmless build beside them.

class Memory
  BAR = 20 # MB of 1,000,000 bytes
  PEAK_BAR = 100
  N_FLOODS = 3
  # A harmless build shares the processors with the other builds.
  TIME_BAR = 0.33
  REST = Figures.sized(5, 1) # seconds
  N_JOBS = Figures.sized(200, 10)

  def initialize(world, runs)
    @world = world
    @runs = runs
  end

  # The bars.
  def measure
    @ours, @theirs = Hash.new { |all, state| all[state] = [] }, Hash.new { |all, state| all[state] = [] }
    @runs.times { measure_once }
    print_figures
    [bar('memory after the start', :started), bar("memory after #{N_JOBS} jobs", :worked), *measure_flood]
  end

  private

  # Both at the same time. They do not affect each other, because they have separate queues.
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

  # The bars of a worker whose builds write as much as they can.
  def measure_flood
    flood = FloodingApp.new(@world)
    floods = Array.new(N_FLOODS) { |n| @world.job(FloodingApp::NAME, flood.commit_that_is_new, "flood#{n}" => './flood') }
    innocent = -> { @world.job(FloodingApp::NAME, flood.commit_that_is_new, 'innocent' => './innocent') }
    @world.with(@world.start_worker) do |worker|
      alone, = @world.build_beside([], innocent.call)
      beside, = @world.build_beside(floods, innocent.call)
      puts '', "memory: #{N_FLOODS} builds of a 60 kB step that prints 1,000,000 lines, and an innocent one",
           Figures.table(['', 'alone', 'beside them'], ['innocent build, s', *[alone, beside].map { |time| format('%.2f', time) }],
                         ['most memory, MB', '', format('%.1f', worker.peak)])
      [peak_bar(worker.peak), time_bar(beside, alone)]
    end
  end

  def peak_bar(peak)
    Bar.new(name: "memory with #{N_FLOODS} floods", ours: format('%.1f MB', peak), theirs: '', ratio: '',
            asked: "<= #{PEAK_BAR} MB", is_met: peak <= PEAK_BAR)
  end

  def time_bar(beside, alone)
    Bar.new(name: 'a build beside them', ours: format('%.2f s', beside), theirs: format('alone %.2f s', alone),
            ratio: Figures.times(beside, alone), asked: ">= #{TIME_BAR} x", is_met: alone >= TIME_BAR * beside)
  end

  def bar(name, state)
    ours, theirs = [@ours, @theirs].map { |side| Figures.median_of(side[state], &:first) }
    Bar.new(name: name, ours: format('%.1f MB', ours), theirs: format("Ruby's %.1f MB", theirs),
            ratio: Figures.times(ours, theirs), asked: "<= #{BAR} MB", is_met: ours <= BAR)
  end
end
