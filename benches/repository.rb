# Git repositories on the host of GitHub's stand-in, each with a tree for new commits.

require 'fileutils'
require 'json'
require 'open3'

# A failure that prevents the measurement. The message is for the user.
class Unmeasurable < StandardError; end

class Repository
  attr_reader :name, :tree

  # Ignores the user's git settings: hooks and signing could make these commands fail.
  UNCONFIGURED = { 'GIT_CONFIG_GLOBAL' => '/dev/null', 'GIT_CONFIG_NOSYSTEM' => '1' }.freeze

  # `name` includes the owner. `past`: the first commits, as input of `git fast-import`.
  def initialize(root, directory, name, past: '')
    @name = name
    @bare = File.join(root, "#{name}.git")
    @tree = File.join(directory, 'trees', name)
    @log = File.join(directory, 'git.log')
    git('init', '--bare', @bare)
    git('-C', @bare, 'fast-import', input: past) unless past.empty?
    FileUtils.mkdir_p(File.dirname(@tree))
    git('clone', @bare, @tree)
  end

  def write(file, text) = File.write(File.join(@tree, file), text)

  # Commits the current tree and returns the sha.
  def commit
    git('-C', @tree, 'add', '.')
    git('-C', @tree, 'commit', '-m', 'A commit')
    git('-C', @tree, 'push', @bare, 'HEAD:refs/heads/main')
    `git -C #{@tree} rev-parse HEAD`.chomp
  end

  private

  def git(*arguments, input: '')
    options = %w[-c init.defaultBranch=main -c user.name=benches -c user.email=benches@localhost]
    output, status = Open3.capture2e(UNCONFIGURED, 'git', *options, *arguments, stdin_data: input, binmode: true)
    File.write(@log, output, mode: 'ab')
    status.success? or raise Unmeasurable, "git #{arguments.join(' ')} failed; its log is #{@log}"
  end
end

# The application of docker/quickstart, with a history and with steps that wait SLOWNESS times as long: 8 s (shared by
# the images), 8 s and 6 s. The article's 90 seconds would be more realistic, but five runs of each side would take too
# long.
class VotingApp < Repository
  NAME = 'acme/voting-app'
  TEMPLATE = File.expand_path('../docker/quickstart.d/voting-app', __dir__)
  SLOWNESS = Figures.sized(4, 0.1)
  # Some years of history, which a full clone fetches and a fetch of one commit does not. 96 MB that do not compress.
  N_PAST_COMMITS, PAST_BYTES = Figures.sized(3000, 50), 32 << 10
  SOURCES = %w[vote/app.py result/views/index.html worker/src/main/java/worker/Worker.java].freeze

  def initialize(root, directory)
    super(root, directory, NAME, past: past)
    FileUtils.cp_r("#{TEMPLATE}/.", @tree)
    slow_down
  end

  # A commit without any cached step: its first step copies a new file.
  def commit_that_is_new
    Dir[File.join(@tree, '*/packages.txt')].each { |file| File.write(file, "locked at #{Time.now.to_f}\n") }
    commit
  end

  # A commit with a change in one source file of each image.
  def commit_of_changes
    SOURCES.each { |file| write(file, "changed at #{Time.now.to_f}\n") }
    commit
  end

  # A commit with a change outside the images.
  def commit_beside_the_images
    write('README', "written at #{Time.now.to_f}\n")
    commit
  end

  private

  # Every commit replaces one of 50 files.
  def past
    random = Random.new(1)
    commits = (1..N_PAST_COMMITS).map do |n|
      "commit refs/heads/main\ncommitter benches <benches@localhost> #{1_600_000_000 + n} +0000\ndata 4\npast\n" \
        "M 100644 inline assets/#{n % 50}\ndata #{PAST_BYTES}\n#{random.bytes(PAST_BYTES)}\n"
    end
    commits.join
  end

  def slow_down
    Dir[File.join(@tree, '*/Dockerfile')].each do |file|
      File.write(file, File.read(file).gsub(/(?<=sleep )[\d.]+/) { |seconds| (seconds.to_f * SLOWNESS).to_s })
    end
  end
end

# An image with a step whose command has 60 kB and prints a million empty lines, slowly enough for BuildKit to forward
# them all, and a harmless image.
class FloodingApp < Repository
  NAME = 'acme/flood'
  FLOOD = "for i in $(seq #{Figures.sized(20, 2)}); do yes '' | head -n 50000; sleep 0.3; done; echo >/dev/null #{'word ' * 12_000}".freeze

  def initialize(world)
    super(world.path('git'), world.path('.'), NAME)
    { 'flood' => FLOOD, 'innocent' => 'cat /once' }.each do |name, command|
      FileUtils.mkdir_p(File.join(@tree, name))
      write("#{name}/Dockerfile", "ARG BASE\nFROM $BASE\nCOPY once /once\nRUN #{command}\n")
    end
  end

  # A commit without any cached step.
  def commit_that_is_new
    %w[flood innocent].each { |name| write("#{name}/once", "at #{Time.now.to_f}\n") }
    commit
  end
end

# A generated product repository, the same in every run except for the added commits: 4,000 files of 47 MB, and 600
# commits that rewrite 20 of them each. Its history is four times as large as one commit. It has no deltas, and the
# server makes none: the server shares the processors with the measured processes and should use little of them.
class LargeRepository < Repository
  NAME = 'acme/large'
  N_FILES, N_DIRECTORIES, N_COMMITS, N_CHANGES = Figures.sized(4000, 100), 400, Figures.sized(600, 5), 20
  SIZES = 8.0..16.0 # binary logarithms of bytes
  # The content of files: repeated lines and words, so that they compress like code.
  N_LINES, N_WORDS = 500, 300

  def initialize(root, directory)
    @random = Random.new(1)
    @n = 0
    super(root, directory, NAME, past: past)
    git('-C', @bare, 'config', 'pack.window', '0')
  end

  # A commit with a new line in ten files.
  def commit_of_changes
    @n += 1
    10.times { |i| File.write(File.join(@tree, path(i * (N_FILES / 10 - 1))), "changed for the #{@n}. time\n", mode: 'a') }
    commit
  end

  private

  def past
    @lines = lines
    first = commit_of(1, 0...N_FILES)
    rest = (2..N_COMMITS).map { |n| commit_of(n, Array.new(N_CHANGES) { @random.rand(N_FILES) }.uniq) }
    ['option git depth=0', first, *rest].join("\n")
  end

  # A commit for `git fast-import`.
  def commit_of(n, files)
    changes = files.map do |file|
      text = text_of(2**@random.rand(SIZES))
      "M 100644 inline #{path(file)}\ndata #{text.bytesize}\n#{text}\n"
    end
    "commit refs/heads/main\ncommitter benches <benches@localhost> #{1_600_000_000 + n} +0000\ndata 4\npast\n#{changes.join}"
  end

  def path(file) = format('part%02d/module%03d/file%04d', file % N_DIRECTORIES / 20, file % N_DIRECTORIES, file)

  def text_of(size)
    text = +''
    text << @lines.sample(random: @random) while text.bytesize < size
    text
  end

  def lines
    words = Array.new(N_WORDS) { Array.new(@random.rand(2..10)) { @random.rand(97..122).chr }.join }
    Array.new(N_LINES) { "#{words.sample(@random.rand(1..12), random: @random).join(' ')}\n" }
  end
end
