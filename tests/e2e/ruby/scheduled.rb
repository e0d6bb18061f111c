# Jobs of Rails that wait for their time. Works in Sidekiq 6.4, 7.3 and 8.1.
#
# usage: scheduled.rb put SECONDS   puts a scheduled job, one of Active Job and a failed job into their sets, due after so long
#        scheduled.rb mark SECONDS  puts a scheduled job that client middleware has given a field
#        scheduled.rb poll          moves due jobs as Sidekiq's own poller does
#        scheduled.rb take          prints the jobs of the queue as JSON, and removes them
require "json"
require "logger"
require "securerandom"
require "sidekiq"
require "sidekiq/api"
require "sidekiq/scheduled"
require "active_job"
require "sidekiq/rails" if Sidekiq::VERSION.to_i >= 8

Redis.sadd_returns_boolean = false if defined?(Redis) && Redis.respond_to?(:sadd_returns_boolean=)
Sidekiq.logger.level = Logger::WARN
ActiveJob::Base.queue_adapter = :sidekiq
ActiveJob::Base.logger = nil

class MailJob
  include Sidekiq::Job
  sidekiq_options queue: "mails", retry: 3, tags: ["a"], backtrace: 2
end

class EchoJob < ActiveJob::Base
  queue_as "mails"
end

# What a lock or an error reporter does.
class Mark
  def call(_class, job, _queue, _pool)
    job["trace"] = "0123"
    yield
  end
end

def put(at)
  MailJob.perform_at(at, 1.5, 123456789012345678901234567890, {"a" => [nil, "ü </script>"]})
  EchoJob.set(wait_until: Time.at(at)).perform_later("x", a: 1)
  made = Sidekiq::ScheduledSet.new.find { |job| job.klass == "MailJob" }.item
  times = %w[created_at enqueued_at failed_at].to_h { |name| [name, made["created_at"]] }
  failed = made.merge(times, "jid" => SecureRandom.hex(12), "args" => [], "error_message" => "<x>", "error_class" => "Oops",
                      "retry_count" => 0)
  Sidekiq.redis { |redis| redis.zadd("retry", at.to_s, JSON.generate(failed)) }
end

def poll
  enq = Sidekiq::VERSION.to_i < 7 ? Sidekiq::Scheduled::Enq.new : Sidekiq::Scheduled::Enq.new(Sidekiq.default_configuration)
  enq.enqueue_jobs
end

case ARGV[0]
when "put" then put(Time.now.to_f + ARGV[1].to_f)
when "mark"
  Sidekiq.configure_client { |config| config.client_middleware { |chain| chain.add Mark } }
  MailJob.perform_in(ARGV[1].to_f, "marked")
when "poll" then poll
when "take"
  queue = Sidekiq::Queue.new("mails")
  print JSON.generate(queue.map(&:value))
  queue.clear
end
