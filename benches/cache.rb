# A cache in a registry: what it saves on a builder without a cache, and what importing and exporting it cost on the others.
#
# Removes everything that the engine has built.

class Cache
  SECONDS, MEGABYTES = Figures.sized(6, 1), Figures.sized(64, 1)
  NAME = 'acme/from-afar'
  REFERENCE = "#{World::REGISTRY}/cache/{account}/{repository}"
  BUILDX = "type=registry,ref=#{REFERENCE}:buildx-{target}"
  # The settings of each side.
  SIDES = {
    'none' => {},
    'accounts.cache' => { SIDEBAKE__ACCOUNTS__CACHE: "#{REFERENCE}:{target}" },
    'during the bake' => { SIDEBAKE__ACCOUNTS__CACHE__FROM: JSON.generate([BUILDX]),
                           SIDEBAKE__ACCOUNTS__CACHE__TO: JSON.generate(["#{BUILDX},mode=max"]) }
  }.freeze
  KINDS = ['every step runs', 'every step is cached', 'the last two run', 'on a new builder'].freeze
  OURS = 'accounts.cache'

  # Seconds until the images are pushed, until the callback, and of the import.
  Build = Struct.new(:pushed, :total, :import)

  def initialize(world, runs)
    @world = world
    @runs = runs
  end

  # Runs the benchmark, and returns its bars.
  def measure
    @application = Repository.new(@world.path('git'), @world.path('.'), NAME)
    write_dockerfile
    @builds = SIDES.keys.to_h { |side| [side, KINDS.to_h { |kind| [kind, []] }] }
    @runs.times { |turn| SIDES.keys.rotate(turn).each { |side| @world.with(start(side)) { measure_once(side) } } }
    print_figures
    bars
  end

  private

  def start(side) = @world.start_worker(**SIDES[side])

  # A step that takes its time and leaves a layer, and another one after it.
  def write_dockerfile
    @application.write('Dockerfile', <<~DOCKERFILE)
      ARG BASE
      FROM $BASE
      COPY once /once
      RUN sleep #{SECONDS}; dd if=/dev/urandom of=/layer bs=1M count=#{MEGABYTES}
      COPY page /page
      RUN cat /page
    DOCKERFILE
  end

  def measure_once(side)
    @application.write('once', "#{side} at #{Time.now.to_f}\n")
    change
    note(side, 'every step runs', 0)
    note(side, 'every step is cached', 4)
    change
    note(side, 'the last two run', 2)
    forget
    note(side, 'on a new builder', side == 'none' ? 0 : 4)
  end

  def change
    @application.write('page', "at #{Time.now.to_f}\n")
    @sha = @application.commit
  end

  def note(side, kind, n_cached)
    job = @world.job(NAME, @sha, { 'afar' => '.' }).merge('ref' => 'refs/heads/main', 'default_branch' => 'main')
    seconds, report = @world.build_of(job)
    target, timings = report['targets'].first, report['timings']
    unless target['steps_cached'] == n_cached && report['notices'].empty?
      raise Unmeasurable, "#{side}, #{kind}: #{target['steps_cached']} steps are cached: #{report['notices']}"
    end
    import, export = timings.values_at('cache_import_ms', 'cache_export_ms').map { |ms| ms / 1000.0 }
    # The other side exports before its bake ends.
    @builds[side][kind] << Build.new(side == OURS ? seconds - export : seconds, seconds, import)
  end

  def forget
    command = [World::BUILDX, 'prune', '--all', '--force']
    output, status = Open3.capture2e(Service::CLEAN.merge(@world.builder.environment), *command, unsetenv_others: true)
    status.success? or raise Unmeasurable, "docker-buildx prune: #{output}"
  end

  def print_figures
    puts '', "cache: a step of #{SECONDS} s that leaves #{MEGABYTES} MB; seconds: median (least-most)"
    rows = SIDES.keys.flat_map do |side|
      %i[pushed total import].filter_map do |field|
        next if field == :import && side == 'none'

        ["#{side}, #{field}", *KINDS.map { |kind| Figures.spread(@builds[side][kind].map(&field), 2) }]
      end
    end
    puts Figures.table(['', *KINDS], *rows)
  end

  def bars
    pushed = ->(side, kind) { Figures.median_of(@builds[side][kind], &:pushed) }
    [['on a new builder', 'none', 0.5], ['every step runs', 'during the bake', 1.05], ['every step is cached', 'none', 1.5]].map do |kind, other, most|
      ours, theirs = pushed[OURS, kind], pushed[other, kind]
      Bar.new(name: "cache, #{kind}", ours: format('%.2f s', ours), theirs: format("#{other} %.2f s", theirs),
              ratio: Figures.times(ours, theirs), asked: "<= #{most} x", is_met: ours <= most * theirs)
    end
  end
end
