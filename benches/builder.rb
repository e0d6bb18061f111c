# The builder: a Docker engine on this machine, or BuildKit pods on a Kubernetes. sidebake and the manual bake use the
# same one.

class Engine
  DOCKER_HOST = ENV['DOCKER_HOST']

  # The settings of sidebake's builder.
  def settings(_directory) = %(builders.default = { driver = "docker", endpoint = "#{DOCKER_HOST}" })

  def start(_world) = nil

  def stop = nil

  # The name of the builder in buildx, the settings of buildx, and the directory to bake a repository from.
  def name = 'default'

  def environment = { 'DOCKER_HOST' => DOCKER_HOST }

  def working_directory(_repository) = nil
end

# Three pods in their own namespace, and three shards beside them. The manual bake runs in the same directory as
# sidebake's, so that buildx chooses the same pod.
class Cluster
  NAMESPACE, NAME, SHARDED, N_PODS = 'sidebake-benches', 'benches', 'sharded', 3

  def settings(directory)
    @directory = directory
    common = <<~TOML
      driver = "kubernetes"
      kubeconfig = "#{ENV.fetch('KUBECONFIG')}"
      namespace = "#{NAMESPACE}"
      image = "#{ENV.fetch('BUILDKIT_IMAGE')}"
    TOML
    <<~TOML
      [builders.#{NAME}]
      #{common}
      replicas = #{N_PODS}
      grace_period = "1s"
      sticky_path = "#{working_directory('{owner}/{repository}')}"
      [builders.#{SHARDED}]
      #{common}
      shards = #{N_PODS}
      volume = "1Gi"
      storage_class = "#{NAMESPACE}"
    TOML
  end

  def start(world)
    kubectl('delete', 'namespace', NAMESPACE, '--ignore-not-found')
    kubectl('create', 'namespace', NAMESPACE)
    offer_disks
    world.sidebake('builder', 'ensure')
    FileUtils.mkdir_p(environment['BUILDX_CONFIG'])
    command = [World::BUILDX, 'create', '--name', NAME, '--node', "#{NAME}0", '--driver', 'kubernetes',
               '--driver-opt', "namespace=#{NAMESPACE},image=#{ENV.fetch('BUILDKIT_IMAGE')},replicas=#{N_PODS}"]
    output, status = Open3.capture2e(Service::CLEAN.merge(environment), *command, unsetenv_others: true)
    status.success? or raise Unmeasurable, "docker-buildx create: #{output}"
  end

  def stop
    kubectl('delete', 'namespace', NAMESPACE, '--ignore-not-found', '--wait=false')
    remove_disks
  end

  def name = NAME

  def environment = { 'KUBECONFIG' => ENV.fetch('KUBECONFIG'), 'BUILDX_CONFIG' => File.join(@directory, 'buildx') }

  def working_directory(repository) = File.join(@directory, 'sticky', repository)

  # Deletes a pod at once, as the death of its node does.
  def kill(pod) = kubectl('delete', 'pod', pod, '--namespace', NAMESPACE, '--grace-period=0', '--force', '--wait=false')

  # Waits until as many pods as at the start are ready again.
  def wait_for_pods = kubectl('rollout', 'status', "deployment/#{NAME}0", '--namespace', NAMESPACE, '--timeout=120s')

  # Replaces all pods of both builders, and waits until the new ones are ready.
  def replace_pods
    kubectl('delete', 'pods', '--all', '--namespace', NAMESPACE)
    kubectl('wait', 'deployments', '--all', '--for=condition=Available', '--namespace', NAMESPACE, '--timeout=120s')
  end

  private

  def offer_disks
    remove_disks
    disks = Array.new(N_PODS) do |n|
      { apiVersion: 'v1', kind: 'PersistentVolume', metadata: { name: "#{NAMESPACE}-#{n}", labels: { app: NAMESPACE } },
        spec: { storageClassName: NAMESPACE, capacity: { storage: '2Gi' }, accessModes: ['ReadWriteOnce'],
                persistentVolumeReclaimPolicy: 'Retain',
                hostPath: { path: File.join(@directory, "disk-#{n}"), type: 'DirectoryOrCreate' } } }
    end
    kubectl('apply', '-f', '-', input: JSON.generate(apiVersion: 'v1', kind: 'List', items: disks))
  end

  def remove_disks = kubectl('delete', 'persistentvolumes', '--selector', "app=#{NAMESPACE}", '--wait=false')

  def kubectl(*arguments, input: '')
    environment = { 'KUBECONFIG' => ENV.fetch('KUBECONFIG') }
    output, status = Open3.capture2e(environment, ENV.fetch('KUBECTL'), *arguments, stdin_data: input)
    status.success? or raise Unmeasurable, "kubectl #{arguments.join(' ')}: #{output}"
  end
end
