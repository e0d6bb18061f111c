# New pods under unbroken load: how soon the same build finds its steps in their cache.

class Fresh
  N_APPLICATIONS = Figures.sized(9, 2)
  SECONDS = Figures.sized(60, 5)
  STEP = Figures.sized(3, 1) # seconds of the step that a cache saves
  SIDES = { 'warm' => true, 'without warm' => false }.freeze
  MIN_CACHED = 0.9

  def initialize(world)
    @world = world
  end

  # Runs the benchmark, and returns its bars.
  def measure
    @applications = Array.new(N_APPLICATIONS) { |n| Repository.new(@world.path('git'), @world.path('.'), "acme/fresh#{n}") }
    @cached = SIDES.to_h do |side, is_warmed|
      @world.builder.replace_pods
      worker = @world.start_worker(SIDEBAKE__BUILDERS__BENCHES__WARM: is_warmed.to_s)
      [side, @world.with(worker) { builds(side) }]
    end
    print_figures
    bars
  end

  private

  # The part of the steps of each repeat that was cached.
  def builds(side)
    jobs = @applications.to_h { |application| [application.name, job(application, side)] }
    # The first ones begin one after the other, so that the pods are never idle.
    reports = @world.build_unbroken(jobs, SECONDS, STEP / 3.0).drop(N_APPLICATIONS)
    reports.map { |report| report['targets'].first }.map { |target| target['steps_cached'].fdiv(target['steps_total']) }
  end

  def job(application, side)
    application.write('Dockerfile', <<~DOCKERFILE)
      ARG BASE
      FROM ${BASE}
      RUN sleep #{STEP} && echo #{application.name}, #{side} > /step
      COPY . /srv
    DOCKERFILE
    image = { File.basename(application.name) => '.' }
    @world.job(application.name, application.commit, image).merge('builder' => Cluster::NAME)
  end

  def print_figures
    puts '', "fresh: #{N_APPLICATIONS} applications, built again and again on new pods for #{SECONDS} s, with a step of #{STEP} s"
    rows = @cached.map { |side, repeats| [side, repeats.size.to_s, percent(cached(side))] }
    puts Figures.table(['', 'repeats', 'steps cached'], *rows)
  end

  def cached(side) = @cached[side].sum / [@cached[side].size, 1].max

  def percent(part) = format('%.0f %%', 100 * part)

  def bars
    ours, theirs = SIDES.keys
    [Bar.new(name: 'cached under load on new pods', ours: percent(cached(ours)), theirs: "#{theirs} #{percent(cached(theirs))}",
             ratio: Figures.times(@cached[theirs].size, @cached[ours].size), asked: ">= #{percent(MIN_CACHED)}",
             is_met: cached(ours) >= MIN_CACHED)]
  end
end
