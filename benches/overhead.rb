# sidebake's own time around a bake: from the job in Redis to the callback in Redis, minus a bare bake of the same tree.
#
# Everything is cached, so that both sides are short and the difference is clear. There are two kinds of warm jobs: one
# for a commit that sidebake built before, and one for a new commit, which it has to fetch.

require_relative 'bake'

class Overhead
  BAR = 300 # ms
  PHASES = %w[token_ms fetch_ms checkout_ms print_ms bake_ms].freeze

  # One job: milliseconds to the callback, and how sidebake reports their use.
  Job = Struct.new(:total, :timings) do
    def own = total - timings['bake_ms']
    def rest = total - timings.values_at(*PHASES).sum
  end

  def initialize(world, runs)
    @world = world
    @runs = runs
  end

  # The bars.
  def measure
    @bake = Bake.new(@world)
    @again, @fresh, @bare = [], [], []
    @world.with(@world.start_worker) do |worker|
      warm_up
      @runs.times { |n| measure_once(n) }
      @resident = worker.resident
    end
    print_figures
    [bar('overhead, same commit', @again), bar('overhead, new commit', @fresh)]
  end

  private

  def warm_up
    @sha = @world.repository.commit_that_is_new
    2.times { @world.build(@sha) }
    @bake.take(@sha)
    @bake.run
  end

  # All three in each run, so that they share its noise. Each goes first in turn.
  def measure_once(turn)
    sides = [-> { @again << job(@sha) }, -> { @fresh << job(@new) }, -> { @bare << bare }]
    @new = @world.repository.commit_beside_the_images
    sides.rotate(turn).each(&:call)
  end

  def job(sha)
    seconds, report = @world.build(sha)
    expect_cached(report['targets'].sum { |target| target['steps_total'] - target['steps_cached'] })
    Job.new(seconds * 1000, report['timings'])
  end

  # Milliseconds.
  def bare
    seconds, n_uncached = @bake.run
    expect_cached(n_uncached)
    seconds * 1000
  end

  def expect_cached(n_uncached)
    raise Unmeasurable, "#{n_uncached} steps of a warm build were not cached" if n_uncached.positive?
  end

  def print_figures
    puts '', 'overhead: three images, all steps cached, pushed; milliseconds: median (least-most)'
    kinds = [@again, @fresh]
    puts Figures.table(
      ['', 'same commit', 'new commit'],
      ['sidebake, job to callback', *kinds.map { |jobs| Figures.spread(jobs.map(&:total)) }],
      ['docker-buildx bake alone', Figures.spread(@bare), ''],
      ['difference in each run', *kinds.map { |jobs| Figures.spread(differences(jobs)) }],
      ['sidebake without its bake', *kinds.map { |jobs| Figures.spread(jobs.map(&:own)) }],
      *PHASES.map { |phase| ["  #{phase}", *kinds.map { |jobs| Figures.spread(jobs.map { |job| job.timings[phase] }) }] },
      ['  all else', *kinds.map { |jobs| Figures.spread(jobs.map(&:rest)) }]
    )
    puts format('  After these builds the worker has %.1f MB resident, %.1f MB of it without a file behind it.', *@resident)
  end

  # Compares within a run, because everything in a run meets the same noise.
  def differences(jobs) = jobs.zip(@bare).map { |job, bare| job.total - bare }

  # Both methods must be within the bar. One includes the noise of two bakes. The other trusts sidebake's own report and
  # omits the start of docker-buildx through the launcher.
  def bar(name, jobs)
    total, bare = Figures.median_of(jobs, &:total), Figures.median(@bare)
    difference, own = Figures.median(differences(jobs)), Figures.median_of(jobs, &:own)
    Bar.new(name: name, ours: format('%.0f ms', total), theirs: format('bare bake %.0f ms', bare),
            ratio: Figures.times(total, bare), asked: format('+%.0f, own %.0f <= %d ms', difference, own, BAR),
            is_met: [difference, own].max <= BAR)
  end
end
