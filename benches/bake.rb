# docker-buildx bake by hand, without sidebake around it: the definition that sidebake makes, the same switches and form of
# output, and a copy of the tree that has no .git, as a worktree of sidebake's.

class Bake
  def initialize(world)
    @world = world
    @home = world.path('bare')
    FileUtils.mkdir_p(@home)
  end

  # Takes the tree as it is now, to be pushed under tags with this sha.
  def take(sha)
    World::IMAGES.each { |image| FileUtils.cp_r(File.join(@world.repository.tree, image), @home) }
    @definition = JSON.generate(definition(sha))
  end

  # Seconds, and how many steps had to run.
  def run
    events = nil
    seconds = Figures.seconds do
      events, status = Open3.capture2e(environment, *arguments, stdin_data: @definition, chdir: @home, unsetenv_others: true)
      status.success? or raise Unmeasurable, "docker-buildx bake has failed: #{events.lines.last}"
    end
    [seconds, n_uncached(events)]
  end

  private

  def environment
    Service::CLEAN.merge(
      'DOCKER_HOST' => World::DOCKER_HOST, 'DOCKER_CONFIG' => @home, 'BUILDX_CONFIG' => File.join(@home, 'buildx'),
      'BUILDX_GIT_INFO' => '0', 'BUILDX_GIT_LABELS' => '0', 'BUILDX_METADATA_PROVENANCE' => 'disabled'
    )
  end

  def arguments
    [World::BUILDX, 'bake', '--builder', 'default', '--file', '-', '--progress', 'rawjson',
     '--metadata-file', File.join(@home, 'metadata.json'), *World::IMAGES]
  end

  def definition(sha)
    targets = World::IMAGES.to_h do |image|
      [image, { 'context' => File.join(@home, image), 'dockerfile' => 'Dockerfile', 'args' => { 'BASE' => World::BASE_IMAGE },
                'tags' => [@world.tag(image, sha)], 'output' => [{ 'type' => 'registry' }] }]
    end
    { 'group' => { 'default' => { 'targets' => World::IMAGES } }, 'target' => targets }
  end

  def n_uncached(events)
    vertices = events.lines.flat_map { |line| JSON.parse(line)['vertexes'] || [] }
    steps = vertices.select { |vertex| vertex['completed'] && vertex['name'] =~ %r{/\d+\] RUN } }
    steps.uniq { |vertex| vertex['digest'] }.count { |vertex| !vertex['cached'] }
  end
end
