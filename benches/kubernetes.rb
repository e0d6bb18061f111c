# On BuildKit pods: the time around a bake, many builds at once, and the loss of a pod in the middle of a build.

require_relative 'overhead'
require_relative 'fresh'
require_relative 'shards'

class Kubernetes
  N_BUILDS = Figures.sized(16, 3)
  WAIT = Figures.sized(10, 4) # seconds that the step of each build waits
  BAR_TOGETHER = 1.1
  BAR_LOST = 20 # seconds more than a build

  def initialize(world, runs)
    @world = world
    @runs = runs
  end

  # The bars.
  def measure
    overhead = Overhead.new(@world, @runs).measure
    @applications = Array.new(N_BUILDS) { |n| Repository.new(@world.path('git'), @world.path('.'), "acme/app#{n}") }
    @together, @by_hand, @whole, @lost = [], [], [], []
    @world.with(@world.start_worker) do
      # Reads the kubeconfig, loads the base image on every pod, and mirrors the trees.
      2.times { build_together }
      @runs.times { |turn| [-> { @together << build_together }, -> { @by_hand << bake_together }].rotate(turn).each(&:call) }
      @runs.times { lose_a_pod }
    end
    print_figures
    [*overhead, bar_together, bar_lost, *Fresh.new(@world).measure, *Shards.new(@world).measure]
  end

  private

  # Seconds until the last callback arrives.
  def build_together
    jobs = @applications.map { |application| job(application) }
    @world.build_together(jobs).first
  end

  # The same with one process for each build.
  def bake_together
    bakes = @applications.map do |application|
      sha = new_commit(application)
      Bake.new(@world, application, image(application)).tap { |bake| bake.take(sha) }
    end
    Figures.seconds { bakes.map { |bake| Thread.new { bake.run } }.each(&:value) }
  end

  # A build without a fault, and a build that loses its pod halfway through its step.
  def lose_a_pod
    application = @applications.first
    seconds, (report,) = @world.build_together([job(application)])
    @whole << seconds
    killer = Thread.new do
      sleep seconds / 2
      @world.builder.kill(report['placement']['pod'])
      Figures.now
    end
    @world.build_together([job(application)])
    @lost << (Figures.now - killer.value)
    @world.builder.wait_for_pods
  end

  def job(application)
    sha = new_commit(application)
    @world.job(application.name, sha, image(application))
  end

  def image(application) = { File.basename(application.name) => '.' }

  # No cache has its step.
  def new_commit(application)
    dockerfile = "ARG BASE\nFROM ${BASE}\nENV NOW=#{Figures.now}\nRUN sleep #{WAIT}\nCOPY . /srv\n"
    application.write('Dockerfile', dockerfile)
    application.commit
  end

  def print_figures
    puts '', "kubernetes: on #{Cluster::N_PODS} pods; seconds: median (least-most)"
    puts Figures.table(
      ['', ''],
      ["#{N_BUILDS} builds at once that wait #{WAIT} s, sidebake", Figures.spread(@together, 1)],
      ['  the same as docker-buildx bake by hand', Figures.spread(@by_hand, 1)],
      ['one of them alone', Figures.spread(@whole, 1)],
      ['  its image, from the moment that its pod was killed', Figures.spread(@lost, 1)]
    )
  end

  def bar_together
    ours, theirs = Figures.median(@together), Figures.median(@by_hand)
    Bar.new(name: "#{N_BUILDS} builds at once", ours: format('%.1f s', ours), theirs: format('by hand %.1f s', theirs),
            ratio: Figures.times(ours, theirs), asked: "<= #{BAR_TOGETHER} of it", is_met: ours <= theirs * BAR_TOGETHER)
  end

  def bar_lost
    lost, whole = Figures.median(@lost), Figures.median(@whole)
    Bar.new(name: 'image after its pod was killed', ours: format('%.1f s', lost), theirs: format('a build %.1f s', whole),
            ratio: Figures.times(lost, whole), asked: "<= a build + #{BAR_LOST} s", is_met: lost <= whole + BAR_LOST)
  end
end
