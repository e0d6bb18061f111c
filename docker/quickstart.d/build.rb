# Builds one commit of the voting application, as a Rails application does. Enqueues the job with Sidekiq's own client,
# shows the steps while they run, waits for the callback, and checks the images in the registry.
#
# usage: build.rb SHA RESULT_FILE [brief]      (the environment is docker/quickstart's)
# Writes seconds, steps cached and steps to RESULT_FILE. Exits 1 with one sentence when an image is missing.
# brief: prints one line of the callback instead of its whole argument.

require_relative 'jobs'
require_relative 'registry'

IMAGES = %w[vote result worker].freeze
PATIENCE = 300 # seconds

# `docker/quickstart` sets these.
REGISTRY, BASE, REPORTS, WORKER_LOG, WORKER_PID =
  %w[REGISTRY BASE_IMAGE REPORTS WORKER_LOG WORKER_PID].map { |name| ENV.fetch(name) }

def build(sha)
  images = IMAGES.map do |name|
    { 'name' => name, 'context' => "./#{name}", 'args' => { 'BASE' => BASE }, 'tags' => ["#{REGISTRY}/acme/#{name}:#{sha}"] }
  end
  {
    'build_id' => 42, 'repository' => 'acme/voting-app', 'installation_id' => 7, 'sha' => sha, 'ref' => 'refs/heads/main',
    'application' => { 'images' => images },
    'callback' => { 'class' => 'BuildFinishedJob', 'queue' => 'callbacks' }
  }
end

# The steps of a build in the worker's log, which has one JSON object per line.
class Steps
  def initialize(log)
    @log = File.open(log)
    @log.seek(0, IO::SEEK_END)
    @rest = +''
    @seen = {}
  end

  # Prints the steps that ended since the last call.
  def show
    @rest << @log.read.to_s
    while (line = @rest.slice!(/\A.*\n/))
      fields = JSON.parse(line)['fields']
      show_one(*fields.values_at('step', 'ms', 'is_cached')) if fields['event'] == 'step_ended' && fields['step'] =~ %r{/\d+\] RUN }
    end
  end

  def none? = @seen.empty?

  private

  # The log reports a shared step once for each image. Prints only the first report.
  def show_one(step, milliseconds, is_cached)
    return if @seen[step[/\[.*/]]

    @seen[step[/\[.*/]] = true
    puts format('  %8s  %s', is_cached ? 'cached' : format('%.1f s', milliseconds / 1000.0), step[0, 100])
  end
end

def wait_for(path, steps)
  deadline = now + PATIENCE
  until File.exist?(path)
    steps.show
    abort "No callback arrived within #{PATIENCE} s." if now > deadline
    abort "The worker has ended: #{File.readlines(WORKER_LOG).last}" unless File.exist?("/proc/#{WORKER_PID}")
    sleep 0.02
  end
  steps.show
  JSON.parse(File.read(path))
end

# Prints JSON with one line for each field and each target.
def print_report(report)
  lines = report.map do |name, value|
    value = "[\n      #{value.map { |target| JSON.generate(target) }.join(",\n      ")}\n    ]" if name == 'targets'
    "    #{JSON.generate(name)}: #{name == 'targets' ? value : JSON.generate(value)}"
  end
  puts '  {', lines.join(",\n"), '  }'
end

def print_images(report, sha)
  IMAGES.each do |image|
    digest = same_in_registry!(report['targets'].find { |target| target['name'] == image }, sha)
    puts format('  acme/%-7s %s  %s', image, sha[0, 12], digest)
  end
end

def now = Process.clock_gettime(Process::CLOCK_MONOTONIC)

sha, result, brief = ARGV
$stdout.sync = true
steps = Steps.new(WORKER_LOG)
started = now
jid = BuildJob.perform_async(build(sha))
puts "  Sidekiq #{Sidekiq::VERSION} enqueued BuildJob #{jid}"
report = wait_for(File.join(REPORTS, "#{jid}.json"), steps)
seconds = now - started

puts '', 'The callback, as BuildFinishedJob received it'
brief ? puts("  #{JSON.generate(report.slice('build_id', 'jid', 'status', 'reason', 'message', 'sha'))}") : print_report(report)
abort "The build has #{report['status']}: #{report['message']}" unless report['status'] == 'succeeded'
abort 'The worker logged no step of the build.' if steps.none?
puts '', 'The images, as the registry lists them'
print_images(report, sha)
cached, total = %w[steps_cached steps_total].map { |field| report['targets'].sum { |target| target[field] } }
File.write(result, "#{format('%.1f', seconds)} #{cached} #{total}\n")
