# The time until a commit's files are in a directory: sidebake's source child against the git command line, and against
# a full clone each time, as in the Ruby builder. All use the same server, over loopback and over a slower network.
#
# The clock runs from the start of the processes to their end. It excludes two tasks of the worker: it gets the token,
# which both sides have beforehand, and it makes jobs wait for a free clone slot, which this script does when 32 start
# at once.

require_relative 'git'
require_relative 'link'
require_relative 'source_child'
require_relative 'token'

class Source
  # The suffix of each in names.
  NETWORKS = { loopback: '', slow: ', slow' }.freeze
  SIDES = %i[sidebake git].freeze
  # In an order that works: `again` needs the fetch of `warm`.
  WAYS = {
    cold: 'nothing there yet', warm: 'new commit of ten changes', again: 'same commit again', clone: 'clone in full'
  }.freeze
  # The maximum ratio to git's own time, and the minimum ratio to a full clone.
  BARS = { cold: 1.15, warm: 1.5, again: 1.0, together: 1.5 }.freeze
  BAR_CLONE = 10

  N_TOGETHER = Figures.sized(32, 4)
  # How many of them the worker runs at the same time.
  CLONES = Integer(File.read(File.expand_path('../config/sidebake.toml', __dir__))[/^clones = (\d+)/, 1])
  TOGETHER = [[:sidebake, CLONES], [:git, CLONES], [:git, N_TOGETHER]].freeze

  def initialize(world, runs)
    @world = world
    @runs = runs
    @seconds, @bytes, @together = Array.new(3) { Hash.new { |all, key| all[key] = [] } }
  end

  # The bars.
  def measure
    prepare
    @runs.times { |turn| NETWORKS.each_key { |network| measure_once(network, turn) } }
    print_figures
    [*NETWORKS.keys.flat_map { |network| bars(network) }, silence]
  ensure
    @link&.stop
    remove(home)
  end

  private

  def prepare
    @repository = LargeRepository.new(@world.path('git'), @world.path('.'))
    @link = Link.new(URI(@world.git_host).port)
    @urls = { loopback: @world.git_host, slow: @link.url }.transform_values { |host| "#{host}/#{@repository.name}.git" }
    token = Token.mint(@world)
    @sides = { sidebake: SourceChild.new(@world.path('sidebake'), token), git: Git.new(token) }
    sha = @repository.commit_of_changes
    @homes = SIDES.to_h { |side| [side, homes(side, sha)] }
    compare(sha)
  end

  def home(*names) = @world.path(File.join('source', *names))

  # Each has a mirror. The first is for the single calls, and the others stand for as many repositories of this size.
  def homes(side, sha)
    first, *others = (0..N_TOGETHER).map { |n| home("#{side}-#{n}") }
    FileUtils.mkdir_p(first)
    @sides[side].make_mirror(first)
    take(:warm, side, :loopback, first, sha)
    others.each { |other| FileUtils.cp_r(first, other) }
    [first, others]
  end

  # Checks that both sides do the same work.
  def compare(sha)
    trees = @homes.map do |side, (home, _)|
      @sides[side].again(home, @urls[:loopback], sha)
      File.join(home, 'tree')
    end
    system('diff', '-r', *trees, out: File::NULL) or raise Unmeasurable, 'the trees of sidebake and git differ'
    remove(*trees)
  end

  # Both sides in each run. Each goes first in turn.
  def measure_once(network, turn)
    sha = @repository.commit_of_changes
    WAYS.keys.product(SIDES.rotate(turn)).each do |way, side|
      alone(way, side, network, sha) unless [way, side] == %i[clone sidebake]
    end
    TOGETHER.rotate(turn).each { |side, width| @together[[network, side, width]] << together(side, network, width) }
  end

  def alone(way, side, network, sha)
    home = %i[cold clone].include?(way) ? home('new') : @homes[side].first
    FileUtils.mkdir_p(home)
    before = @link.n_bytes
    @seconds[[network, way, side]] << take(way, side, network, home, sha)
    @bytes[[network, way, side]] << @link.n_bytes - before
    remove(home('new'))
  end

  # Seconds until the tree is complete. Removes the tree.
  def take(way, side, network, home, sha)
    seconds = Figures.seconds { @sides[side].public_send(way, home, @urls[network], sha) }
    remove(File.join(home, 'tree'))
    seconds
  end

  # Seconds until the last tree is complete, and the processor seconds of each.
  def together(side, network, width)
    homes = @homes[side].last
    sha = @repository.commit_of_changes
    before = cpu_of_children
    seconds = Figures.seconds { at_once(homes, width) { |home| @sides[side].warm(home, @urls[network], sha) } }
    cpu = (cpu_of_children - before) / N_TOGETHER
    remove(*homes.map { |home| File.join(home, 'tree') })
    [seconds, cpu]
  end

  # Calls the block with each of them, up to `width` at the same time.
  def at_once(things, width)
    waiting = Queue.new(things).close
    threads = Array.new(width) do
      Thread.new do
        while (thing = waiting.pop)
          yield thing
        end
      end
    end
    threads.each(&:value)
  end

  # Some hundred thousand files, which take Ruby a minute.
  def remove(*paths) = system('rm', '-rf', *paths)

  # Of the ended children and their children. Excludes the server, which still runs.
  def cpu_of_children = Process.times.then { |times| times.cutime + times.cstime }

  def print_figures
    puts '', "source: #{LargeRepository::N_FILES} files in a new directory; slow is #{Link::WORDS}; milliseconds: median (least-most)"
    columns = NETWORKS.keys.product(SIDES)
    rows = WAYS.map do |way, name|
      [name, *columns.map { |network, side| spread(network, way, side) }, *SIDES.map { |side| kilobytes(way, side) }]
    end
    puts Figures.table(['', *columns.map { |network, side| "#{side}#{NETWORKS[network]}" }, 'its KB', "git's KB"], *rows)
    puts '', "source: #{N_TOGETHER} new commits at once, each in a mirror of its own; seconds, and milliseconds of CPU for each"
    rows = TOGETHER.map do |side, width|
      ["#{side}, #{width} at a time", *NETWORKS.keys.flat_map { |network| together_cells(network, side, width) }]
    end
    puts Figures.table(['', *NETWORKS.values.flat_map { |suffix| ["seconds#{suffix}", 'CPU'] }], *rows)
  end

  def spread(network, way, side)
    seconds = @seconds[[network, way, side]]
    seconds.empty? ? '' : Figures.spread(seconds.map { |value| value * 1000 })
  end

  # The bytes on the slow network.
  def kilobytes(way, side)
    bytes = @bytes[[:slow, way, side]]
    bytes.empty? ? '' : format('%.1f', Figures.median(bytes) / 1000)
  end

  def together_cells(network, side, width)
    runs = @together[[network, side, width]]
    [Figures.spread(runs.map(&:first), 1), format('%.0f', Figures.median_of(runs, &:last) * 1000)]
  end

  def bars(network)
    suffix = NETWORKS[network]
    alone = ->(way) { SIDES.map { |side| Figures.median(@seconds[[network, way, side]]) } }
    together = TOGETHER.map { |side, width| Figures.median_of(@together[[network, side, width]], &:first) }
    [
      *%i[cold warm again].map { |way| bar("#{way}#{suffix}", *alone[way], BARS[way]) },
      than_clone("warm, against a clone#{suffix}", alone[:warm].first, Figures.median(@seconds[[network, :clone, :git]])),
      bar("#{N_TOGETHER} at once#{suffix}", together.first, together.drop(1).min, BARS[:together])
    ]
  end

  def bar(name, ours, theirs, most)
    Bar.new(name: name, ours: duration(ours), theirs: "git #{duration(theirs)}", ratio: Figures.times(ours, theirs),
            asked: "<= #{most} of it", is_met: ours <= most * theirs)
  end

  def than_clone(name, ours, theirs)
    Bar.new(name: name, ours: duration(ours), theirs: "git #{duration(theirs)}", ratio: Figures.times(ours, theirs),
            asked: ">= #{BAR_CLONE} x", is_met: theirs >= BAR_CLONE * ours)
  end

  def silence
    bytes = @bytes[[:slow, :again, :sidebake]].max
    Bar.new(name: 'bytes of the same commit again', ours: bytes.to_s, theirs: '', ratio: '', asked: 'none', is_met: bytes.zero?)
  end

  def duration(seconds) = seconds < 10 ? format('%.0f ms', seconds * 1000) : format('%.1f s', seconds)
end
