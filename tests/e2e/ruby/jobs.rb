# The jobs of a Rails application: two request a build, and two receive its report, through Sidekiq and through Active
# Job. The client (enqueue.rb) and the Sidekiq worker that runs the callbacks load them.

require 'json'
require 'logger'
require 'sidekiq'
require 'active_job'

# Debian 12's Redis client otherwise prints a deprecation warning on every push.
Redis.sadd_returns_boolean = false if defined?(Redis) && Redis.respond_to?(:sadd_returns_boolean=)

ActiveJob::Base.queue_adapter = :sidekiq
ActiveJob::Base.logger = nil

# Writes the arguments of a callback to a file for the test.
module Reports
  def self.keep(job, report)
    path = File.join(ENV.fetch('REPORTS'), "#{report.fetch('jid')}.json")
    File.write("#{path}.new", JSON.generate('received_by' => job.class.name, 'report' => report))
    File.rename("#{path}.new", path)
  end
end

# sidebake takes these from the queue, so they have no `perform`.
class BuildJob
  include Sidekiq::Job
end

class BuildFinishedJob
  include Sidekiq::Job

  def perform(report) = Reports.keep(self, report)
end

class BuildApplicationJob < ActiveJob::Base
  queue_as 'default'
end

class ApplicationBuiltJob < ActiveJob::Base
  queue_as 'callbacks'

  def perform(report) = Reports.keep(self, report)
end
