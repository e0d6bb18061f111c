# The whole build of three images against the way it replaces: a full clone, then docker build and docker push for each
# image, one after the other or in three threads.
#
# The steps wait and do not compute, so that two processors suffice. Each side gets its own commits, so that no side
# uses the cache of another. First nothing is cached; then a source file of each image has changed. A bare bake of an
# existing tree shows the part of sidebake's time that is not its own.

require 'tmpdir'
require_relative 'bake'
require_relative 'token'

class OldWay
  KINDS = %i[uncached cached].freeze
  # The minimum ratio to each of the old ways, and the minimum time of the steps in seconds.
  BARS = { uncached: { sequential: 2.0, threads: 1.0 }, cached: { sequential: 3.0, threads: 1.0 } }.freeze
  FLOOR = { uncached: 5.5, cached: 1.5 }.transform_values { |seconds| seconds * VotingApp::SLOWNESS }.freeze
  NAMES = { sequential: 'one after the other', threads: 'three threads' }.freeze

  def initialize(world, runs)
    @world = world
    @runs = runs
    @script = Script.new(world)
    @bake = Bake.new(world)
  end

  # The bars.
  def measure
    @seconds = Hash.new { |all, side| all[side] = KINDS.to_h { |kind| [kind, []] } }
    @n_repeated = 0
    @world.with(@world.start_worker) do
      # Not counted: makes the mirror and pulls the base image.
      @world.build(@world.repository.commit_that_is_new)
      @runs.times { |turn| measure_once(turn) }
    end
    print_figures
    KINDS.product(NAMES.keys).map { |kind, side| bar(kind, side) }
  end

  private

  def measure_once(turn)
    %i[sidebake bake sequential threads].rotate(turn).each do |side|
      @seconds[side][:uncached] << time(side) { @world.repository.commit_that_is_new }
      @seconds[side][:cached] << time(side) { @world.repository.commit_of_changes }
    end
  end

  # The seconds of one side for a commit of the block. Repeats a run that meets the engine's bug with a new commit, and
  # counts it.
  def time(side)
    sha = yield
    case side
    when :sidebake then @world.build(sha).first
    when :bake
      @bake.take(sha)
      @bake.run.first
    else Figures.seconds { @script.run(sha, in_threads: side == :threads) }
    end
  rescue Script::SnapshotLost
    @n_repeated += 1
    raise Unmeasurable, 'the engine lost a snapshot in too many threaded runs' if @n_repeated > 5 * @runs

    retry
  end

  def print_figures
    puts '', 'oldway: three images, job to callback against clone, docker build and docker push; seconds: median (least-most)'
    rows = { sidebake: 'sidebake', **NAMES, bake: 'docker-buildx bake alone' }.map do |side, name|
      [name, *KINDS.map { |kind| Figures.spread(@seconds[side][kind], 1) }]
    end
    puts Figures.table(['', 'nothing cached', 'a change in each image'], *rows,
                       ['the waits alone', *KINDS.map { |kind| format('%.1f', FLOOR[kind]) }])
    puts "  Threaded runs that failed, since the engine lost a snapshot, and were repeated: #{@n_repeated}."
  end

  def bar(kind, side)
    ours, theirs = [:sidebake, side].map { |each| Figures.median(@seconds[each][kind]) }
    asked = BARS[kind][side]
    Bar.new(name: "#{kind}, against #{NAMES[side]}", ours: format('%.1f s', ours), theirs: format('%.1f s', theirs),
            ratio: Figures.times(ours, theirs), asked: asked > 1 ? format('>= %.0f x', asked) : '> 1 x',
            is_met: asked > 1 ? theirs / ours >= asked : theirs > ours)
  end

  # What a container of the old way does with a job.
  class Script
    # A bug of the containerd image store with several builds at once.
    class SnapshotLost < StandardError; end
    SNAPSHOT_LOST = /snapshot.*(does not exist|not found)/

    def initialize(world)
      @world = world
      @home = world.path('oldway')
      FileUtils.mkdir_p(@home)
    end

    def run(sha, in_threads:)
      tree = clone
      if in_threads
        in_three_threads { |image| build(tree, image, sha) }
      else
        World::IMAGES.each { |image| build(tree, image, sha) }
      end
    ensure
      FileUtils.rm_rf(tree) if tree
    end

    private

    # Reports a failure after all three have ended.
    def in_three_threads
      threads = World::IMAGES.map { |image| Thread.new { failure { yield image } } }
      failure = threads.filter_map(&:value).first
      raise failure if failure
    end

    def failure
      yield
      nil
    rescue SnapshotLost, Unmeasurable => e
      e
    end

    # A full clone, as in the old way; builds the newest commit of main.
    def clone
      tree = Dir.mktmpdir('clone', @home)
      url = @world.git_host.sub('://', "://x-access-token:#{Token.mint(@world)}@")
      command('git', 'clone', '--quiet', "#{url}/#{VotingApp::NAME}.git", tree)
      tree
    end

    def build(tree, image, sha)
      tag = @world.tag(image, sha)
      command('docker', 'build', '--quiet', '--build-arg', "BASE=#{World::BASE_IMAGE}", '--tag', tag, File.join(tree, image))
      command('docker', 'push', '--quiet', tag)
    end

    def command(*arguments)
      environment = Service::CLEAN.merge('DOCKER_HOST' => Engine::DOCKER_HOST, 'DOCKER_CONFIG' => @home)
      output, status = Open3.capture2e(environment, *arguments, unsetenv_others: true)
      return if status.success?
      raise SnapshotLost if output =~ SNAPSHOT_LOST

      raise Unmeasurable, "#{arguments.first(2).join(' ')} has failed: #{output.lines.last(3).join}"
    end
  end
end
