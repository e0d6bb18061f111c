# Prints how Sidekiq itself sees a worker: its API and its Web UI, as JSON. Works in Sidekiq 6.4, 7.3 and 8.1.
#
# usage: judge.rb look            prints processes, jobs, counts, and the pages of the Web UI
#        judge.rb push JID…       pushes probes that last a minute, one to be retried first
#        judge.rb VERB [JID]      quiet or stop every process; cancel, kill or retry a job
require_relative "web"

def page(path) = %i[status text].zip(get(path)).to_h

def entry(job)
  {jid: job.jid, queue: job.queue, class: job.klass, error_class: job["error_class"], at: job.at.to_f}
end

def look
  processes = Sidekiq::ProcessSet.new.map do |process|
    {identity: process.identity, tag: process.tag, labels: process.labels, concurrency: process["concurrency"],
     busy: process["busy"], queues: process["queues"], stopping: process.stopping?}
  end
  running = []
  works.each do |_, _, work|
    payload = work.respond_to?(:payload) ? work.payload : work["payload"]
    payload = JSON.parse(payload) if payload.is_a?(String)
    running << payload["jid"]
  end
  stats = Sidekiq::Stats.new
  pages = %w[/ /busy /queues /retries /scheduled /morgue]
  pages << "/metrics" if Sidekiq::VERSION.to_i >= 7
  pages << "/metrics/Sidebake::Probe" if Sidekiq::VERSION.to_i >= 7
  shown = pages.to_h { |path| [path, page(path)] }
  first = Sidekiq::RetrySet.new.first
  shown["entry"] = page("/retries/#{first.score}-#{first.jid}") if first
  {version: Sidekiq::VERSION, processes: processes, running: running, processed: stats.processed, failed: stats.failed,
   busy: stats.workers_size, retries: Sidekiq::RetrySet.new.map { |job| entry(job) },
   dead: Sidekiq::DeadSet.new.map { |job| entry(job) }, pages: shown}
end

def push(jid, outcome, seconds)
  callback = {"class" => "Done", "queue" => "callbacks"}
  argument = {"outcome" => outcome, "sleep_s" => seconds, "message" => "as asked", "callback" => callback}
  Sidekiq::Client.push("class" => "Sidebake::Probe", "jid" => jid, "args" => [argument], "backtrace" => true)
end

def cancel(jid)
  client = Sidekiq::Client.new
  return client.cancel!(jid) if client.respond_to?(:cancel!)
  # docs/jobs.md has the same for versions before 7.3.3.
  Sidekiq.redis { |redis| redis.hsetnx("it-#{jid}", "cancelled", Time.now.to_i) }
end

verb, jid, outcome, seconds = ARGV
case verb
when "look" then puts JSON.generate(look)
when "push" then push(jid, outcome, seconds.to_f)
when "cancel" then cancel(jid)
when "quiet" then Sidekiq::ProcessSet.new.each(&:quiet!)
when "stop" then Sidekiq::ProcessSet.new.each(&:stop!)
when "retry" then Sidekiq::RetrySet.new.find_job(jid).retry
when "kill" then Sidekiq::RetrySet.new.find_job(jid).kill
end
