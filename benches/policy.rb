# The cost of policy and sandbox for a build by a repository's file. Measures the phase in which sidebake resolves the
# file, minus its two `docker-buildx bake --print`, run by hand at the same time.

class Policy
  BAR = 10 # ms
  N_EACH = Figures.sized(8, 1) # in a run, since a definition is resolved in a tenth of a second

  NAME = 'acme/policy'
  DEFINITION = <<~HCL
    variable "VERSION" { default = "1" }
    target "base" {
      args   = { VERSION = VERSION }
      labels = { "org.opencontainers.image.source" = "https://github.com/acme/policy" }
      output = ["type=cacheonly"]
    }
    target "default" {
      name       = "app-${app}"
      matrix     = { app = ["vote", "result", "worker"] }
      inherits   = ["base"]
      context    = app
      contexts   = { shared = "shared" }
      tags       = ["acme/${app}:${VERSION}"]
    }
  HCL

  def initialize(world, runs)
    @world = world
    @runs = runs
  end

  # The bars.
  def measure
    make_repository
    take_definition
    @walled, @open, @bare, @added = [], [], [], []
    @runs.times do |turn|
      [-> { builds(@walled, {}) }, -> { builds(@open, { SIDEBAKE__SANDBOX__MODE: 'off' }) }].rotate(turn).each(&:call)
    end
    print_figures
    added = Figures.median(@added)
    [Bar.new(name: 'policy and sandbox', ours: format('%.0f ms', Figures.median(@walled)),
             theirs: format('two --print %.0f ms', Figures.median(@bare)),
             ratio: Figures.times(Figures.median(@walled), Figures.median(@bare)),
             asked: format('%+.1f <= %d ms', added, BAR), is_met: added <= BAR)]
  end

  private

  def make_repository
    @repository = Repository.new(@world.path('git'), @world.path('.'), NAME)
    @repository.write('docker-bake.hcl', DEFINITION)
    (World::IMAGES + ['shared']).each do |name|
      FileUtils.mkdir_p(File.join(@repository.tree, name))
      @repository.write("#{name}/Dockerfile", "FROM scratch\nCOPY --from=shared Dockerfile /\n")
    end
    @sha = @repository.commit
  end

  # The validated definition, the input of the second `docker-buildx bake --print`.
  def take_definition
    output, status = Open3.capture2(Service::CLEAN, @world.path('sidebake'), 'build', @repository.tree, '--print',
                                    '--config', @world.path('sidebake.toml'), unsetenv_others: true, err: File::NULL)
    status.success? or raise Unmeasurable, 'sidebake build --print has failed'
    File.write(@validated = @world.path('validated.json'), output)
    @names = JSON.parse(output)['target'].keys
    @home = @world.path('policy').tap { |home| FileUtils.mkdir_p(home) }
  end

  # Milliseconds of the phase, with the manual calls beside each.
  def builds(times, environment)
    @world.with(@world.start_worker(**environment)) do
      # Fetches the commit, and queries the version of buildx.
      resolve
      N_EACH.times do
        times << resolve
        @bare << print_twice
        @added << (times.last - @bare.last) if times.equal?(@walled)
      end
    end
  end

  def resolve
    job = { 'repository' => NAME, 'installation_id' => World::INSTALLATION, 'sha' => @sha, 'bake' => 'docker-bake.hcl',
            'push' => false, 'callback' => { 'class' => 'BuildFinishedJob', 'queue' => 'callbacks' } }
    _seconds, (report,) = @world.build_together([job])
    report['timings']['print_ms']
  end

  def print_twice
    1000 * Figures.seconds do
      print('--file', 'docker-bake.hcl')
      print('--file', '-', *@names, input: @validated)
    end
  end

  def print(*arguments, input: '/dev/null')
    environment = { 'BUILDX_CONFIG' => @home, 'TMPDIR' => @home, 'BUILDX_GIT_INFO' => '0', 'BUILDX_GIT_LABELS' => '0' }
    pid = Process.spawn(environment, World::BUILDX, 'bake', '--print', '--progress', 'quiet', *arguments,
                        in: input, out: '/dev/null', err: '/dev/null', chdir: @repository.tree, unsetenv_others: true)
    Process.wait(pid)
    $?.success? or raise Unmeasurable, "docker-buildx bake --print #{arguments.join(' ')} has failed"
  end

  def print_figures
    puts '', 'policy: a definition of three targets in HCL is resolved and checked; milliseconds: median (least-most)'
    puts Figures.table(
      ['sidebake', Figures.spread(@walled)],
      ['sidebake without the walls of the sandbox', Figures.spread(@open)],
      ['docker-buildx bake --print, twice', Figures.spread(@bare)],
      ['difference, side by side', Figures.spread(@added, 1)]
    )
  end
end
