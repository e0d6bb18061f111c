# A builder of shards with disks beside a builder of replicas: how builds are spread, and what is left when all pods are
# replaced.

class Shards
  N_APPLICATIONS = Figures.sized(20, 2)
  N_ROUNDS = Figures.sized(3, 2)
  STEP = Figures.sized(3, 1) # seconds of the step that a cache saves
  BUILDERS = { 'shards' => Cluster::SHARDED, 'replicas' => Cluster::NAME }.freeze
  # The builder's first builds of the step, and the same with every step in a cache.
  MIN_CACHED = 0.95
  MAX_TO_WARM = 1.3

  # What a round of builds, one of each application, showed.
  Round = Struct.new(:seconds, :bakes, :pods, :cached, keyword_init: true)

  def initialize(world)
    @world = world
  end

  # The bars.
  def measure
    @applications = Array.new(N_APPLICATIONS) { |n| Repository.new(@world.path('git'), @world.path('.'), "acme/cached#{n}") }
    @world.with(@world.start_worker) do
      @rounds = BUILDERS.keys.to_h { |side| [side, []] }
      N_ROUNDS.times { |turn| BUILDERS.keys.rotate(turn).each { |side| @rounds[side] << build_all(side) } }
      @world.builder.replace_pods
      @replaced = BUILDERS.keys.to_h { |side| [side, build_all(side)] }
    end
    print_figures
    bars
  end

  private

  # Builds all applications at once, each with new content after the step.
  def build_all(side)
    jobs = @applications.map { |application| job(application, side) }
    seconds, reports = @world.build_together(jobs)
    targets = reports.map { |report| report['targets'].first }
    Round.new(seconds: seconds, bakes: reports.map { |report| report['timings']['bake_ms'] / 1000.0 },
              pods: reports.map { |report| report['placement']['shard'] || report['placement']['pod'] },
              cached: targets.sum { |target| target['steps_cached'] } / N_APPLICATIONS.to_f)
  end

  def job(application, side)
    application.write('Dockerfile', "ARG BASE\nFROM ${BASE}\nRUN sleep #{STEP} && echo #{application.name} > /step\nCOPY . /srv\n")
    application.write('content', Figures.now.to_s)
    image = { File.basename(application.name) => '.' }
    @world.job(application.name, application.commit, image).merge('builder' => BUILDERS[side])
  end

  # The builds of the busiest pod, as a part of all.
  def busiest(side) = @rounds[side].flat_map(&:pods).compact.tally.values.max.to_f / (N_APPLICATIONS * N_ROUNDS)

  # Repeats: all rounds but the first.
  def repeats(side) = @rounds[side].drop(1).flat_map(&:bakes)

  def warm(side) = Figures.median_of(@rounds[side].drop(1), &:seconds)

  def print_figures
    puts '', "shards: #{N_APPLICATIONS} applications, #{N_ROUNDS} builds of each, on 3 shards with disks and on 3 sticky replicas"
    rows = BUILDERS.keys.map do |side|
      times = [Figures.median(repeats(side)), Figures.quantile(repeats(side), 0.95)].map { |time| format('%.1f s', time) }
      after = @replaced[side]
      [side, format('%.0f %%', busiest(side) * 100), *times, format('%.1f s', warm(side)), format('%.1f s', after.seconds),
       format('%.2f of 1', after.cached)]
    end
    puts Figures.table(['', 'busiest', 'bake of a repeat', 'p95', 'all at once', 'after all pods were replaced', 'cached then'], *rows)
  end

  def bars
    after, warm = @replaced['shards'], warm('shards')
    cold = @replaced['replicas']
    [
      Bar.new(name: 'cached on new pods', ours: format('%.0f %%', after.cached * 100), theirs: format('replicas %.0f %%', cold.cached * 100),
              ratio: '', asked: ">= #{(MIN_CACHED * 100).round} %", is_met: after.cached >= MIN_CACHED),
      Bar.new(name: 'all builds on new pods', ours: format('%.1f s', after.seconds), theirs: format('replicas %.1f s', cold.seconds),
              ratio: Figures.times(after.seconds, cold.seconds), asked: "<= #{MAX_TO_WARM} of #{format('%.1f s', warm)} warm",
              is_met: after.seconds <= warm * MAX_TO_WARM)
    ]
  end
end
