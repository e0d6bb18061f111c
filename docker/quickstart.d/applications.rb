# Builds one commit of each of three applications on Kubernetes, all at once, and prints the pod of each build. The
# second run prints a table: application, pod, and both builds side by side.
#
# usage: applications.rb QUEUE RESULT_FILE [FIRST_RESULT_FILE] < "APPLICATION SHA" lines
# (the environment is docker/quickstart's)

require_relative 'jobs'
require_relative 'registry'

PATIENCE = 300 # seconds

def build(application, sha)
  registry, base = %w[REGISTRY BASE_IMAGE].map { |name| ENV.fetch(name) }
  image = { 'name' => application, 'context' => '.', 'args' => { 'BASE' => base }, 'tags' => ["#{registry}/acme/#{application}:#{sha}"] }
  {
    'repository' => "acme/#{application}", 'installation_id' => 7, 'sha' => sha, 'ref' => 'refs/heads/main',
    'application' => { 'images' => [image] }, 'callback' => { 'class' => 'BuildFinishedJob', 'queue' => 'callbacks' }
  }
end

# The report about a job, and the seconds until it arrived.
def wait_for(jid, started)
  path = File.join(ENV.fetch('REPORTS'), "#{jid}.json")
  until File.exist?(path)
    abort "No callback arrived within #{PATIENCE} s." if now > started + PATIENCE
    sleep 0.02
  end
  [JSON.parse(File.read(path)), now - started]
end

# The table's entry for one build.
def result(sha, report, seconds)
  abort "The build has #{report['status']}: #{report['message']}" unless report['status'] == 'succeeded'
  target = report['targets'].first
  same_in_registry!(target, sha)
  { 'pod' => report['placement']['pod'] || 'unknown', 'seconds' => seconds, 'cached' => target['steps_cached'], 'total' => target['steps_total'] }
end

def in_words(result) = format('%4.1f s, %d of %d cached', *result.values_at('seconds', 'cached', 'total'))

def now = Process.clock_gettime(Process::CLOCK_MONOTONIC)

def print_table(first, second)
  row = "  %-13s%-30s%-27s%s\n"
  printf row, 'application', 'pod', 'first build, worker one', 'second build, worker two'
  second.each { |name, result| printf row, name, result['pod'], in_words(first[name]), in_words(result) }
end

queue, result_file, first_file = ARGV
started = now
jobs = $stdin.each_line.to_h do |line|
  application, sha = line.split
  [application, [sha, BuildJob.set(queue: queue).perform_async(build(application, sha))]]
end
# One thread for each job, so that each measures when its own callback arrived.
waiting = jobs.to_h { |application, (sha, jid)| [application, Thread.new { result(sha, *wait_for(jid, started)) }] }
results = waiting.transform_values(&:value)
File.write(result_file, JSON.generate(results))
if first_file
  first = JSON.parse(File.read(first_file))
  print_table(first, results)
  moved = results.keys.reject { |name| results[name]['pod'] == first[name]['pod'] }
  abort "Built on another pod the second time: #{moved.join(', ')}" unless moved.empty?
else
  results.each { |name, result| puts "  #{name.ljust(13)}#{result['pod'].ljust(30)}#{in_words(result)}" }
end
