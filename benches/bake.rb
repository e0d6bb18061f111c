# Runs docker-buildx bake without sidebake. Uses sidebake's definition, switches and output format, and a copy of the
# tree without .git, like a worktree of sidebake.

class Bake
  # `images` maps directories of the repository to images.
  def initialize(world, repository = world.repository, images = World::IMAGES.to_h { |name| [name, name] })
    @world = world
    @repository = repository
    @images = images
    @home = world.path(File.join('bare', repository.name))
    @cwd = world.builder.working_directory(repository.name) || @home
    FileUtils.mkdir_p([@home, @cwd])
  end

  # Copies the current tree, to be pushed under tags with this sha.
  def take(sha)
    Dir.children(@repository.tree).reject { |name| name == '.git' }.each do |name|
      FileUtils.cp_r(File.join(@repository.tree, name), @home)
    end
    @definition = JSON.generate(definition(sha))
  end

  # Returns seconds, and the number of steps that ran.
  def run
    events = nil
    seconds = Figures.seconds do
      events, status = Open3.capture2e(environment, *arguments, stdin_data: @definition, chdir: @cwd, unsetenv_others: true)
      status.success? or raise Unmeasurable, "docker-buildx bake failed: #{events.lines.last}"
    end
    [seconds, n_uncached(events)]
  end

  private

  def environment
    Service::CLEAN.merge(
      'DOCKER_CONFIG' => @home, 'BUILDX_CONFIG' => File.join(@home, '.buildx'),
      'BUILDX_GIT_INFO' => '0', 'BUILDX_GIT_LABELS' => '0', 'BUILDX_METADATA_PROVENANCE' => 'disabled',
      **@world.builder.environment
    )
  end

  def arguments
    [World::BUILDX, 'bake', '--builder', @world.builder.name, '--file', '-', '--progress', 'rawjson',
     '--metadata-file', File.join(@home, '.metadata.json'), *@images.keys]
  end

  def definition(sha)
    targets = @images.to_h do |image, context|
      [image, { 'context' => File.expand_path(context, @home), 'dockerfile' => 'Dockerfile',
                'args' => { 'BASE' => World::BASE_IMAGE },
                'tags' => [@world.tag(image, sha)], 'output' => [{ 'type' => 'registry' }] }]
    end
    { 'group' => { 'default' => { 'targets' => @images.keys } }, 'target' => targets }
  end

  def n_uncached(events)
    # On Kubernetes, client-go logs lines of its own between the events.
    lines = events.lines.select { |line| line.start_with?('{') }
    vertices = lines.flat_map { |line| JSON.parse(line)['vertexes'] || [] }
    steps = vertices.select { |vertex| vertex['completed'] && vertex['name'] =~ %r{/\d+\] RUN } }
    steps.uniq { |vertex| vertex['digest'] }.count { |vertex| !vertex['cached'] }
  end
end
