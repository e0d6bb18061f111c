# A Rails application around the Ruby of the documents: rows, Active Job and a router. Loads all files in `APPLICATION`,
# where the test writes the documents' classes.
#
# usage: application.rb call FILE     runs a call site, which may use `build` and `jid`; prints the jid of what it enqueued
#        application.rb serve FILE…   serves the controllers and routes of these on a free port, and prints it
#        application.rb cable PORT FILE…  serves the channels of these on this port, to a user of acme
#        sidekiq -r application.rb    the worker that runs the callbacks
#
# Environment: ROWS, a file with the rows of `builds`, as JSON by id; BUILD, the id of the row for a call site; JID.

require "json"
require "zlib" # as Active Record does
require "sidekiq"
require "active_job"

# Debian 12's Redis client otherwise prints a deprecation warning on every push.
Redis.sadd_returns_boolean = false if defined?(Redis) && Redis.respond_to?(:sadd_returns_boolean=)

ActiveJob::Base.queue_adapter = :sidekiq
ActiveJob::Base.logger = nil
class ApplicationJob < ActiveJob::Base; end

# One table, in a file.
class ApplicationRecord
  def self.rows = JSON.parse(File.read(ENV.fetch("ROWS")))

  def self.find_by(id:)
    row = rows[id.to_s]
    row && new(row)
  end

  def self.find(id) = find_by(id: id) || raise("row #{id.inspect} does not exist")

  def initialize(row) = @row = row

  def update!(changes)
    path = ENV.fetch("ROWS")
    rows = self.class.rows
    rows.fetch(id.to_s).update(changes.transform_keys(&:to_s))
    File.write("#{path}.new", JSON.generate(rows))
    File.rename("#{path}.new", path)
  end

  def respond_to_missing?(name, *) = @row.key?(name.to_s)

  def method_missing(name, *) = @row.fetch(name.to_s) { super }
end

# The application's own class, which the documents leave unchanged.
class LegacyBuildJob
  include Sidekiq::Job
  sidekiq_options queue: "builds"
end

class BuildByIdJob
  include Sidekiq::Job
  sidekiq_options queue: "builds"
end

if ARGV[0] == "cable"
  require "action_cable"
  require "puma"
  module ApplicationCable
    class Connection < ActionCable::Connection::Base
      identified_by :current_user
      def connect = self.current_user = User.new
    end
    class Channel < ActionCable::Channel::Base; end
  end
  class User
    def can_see?(build) = build.account == "acme"
  end
end

Dir[File.join(ENV.fetch("APPLICATION"), "*.rb")].sort.each { |file| require file }

case ARGV[0]
when "call"
  build, jid = Build.find(ENV.fetch("BUILD")), ENV["JID"]
  enqueued = binding.eval(File.read(ARGV[1]), ARGV[1])
  puts enqueued.respond_to?(:provider_job_id) ? enqueued.provider_job_id : enqueued
when "serve"
  require "action_controller"
  require "ostruct"
  require "rack/handler/webrick"
  # Only here, because Sidekiq would otherwise detect all of Rails.
  module Rails
    def self.application = @application ||= OpenStruct.new(routes: ActionDispatch::Routing::RouteSet.new)
  end
  ARGV[1..].each { |file| load file }
  options = {Host: "127.0.0.1", Port: 0, AccessLog: [], Logger: WEBrick::Log.new(File::NULL)}
  Rack::Handler::WEBrick.run(Rails.application.routes, **options) do |server|
    puts server.listeners[0].addr[1]
    $stdout.flush
  end
when "cable"
  ActionCable::Server::Base.config.tap do |config|
    config.cable = {"adapter" => "async"}
    config.logger = Logger.new($stderr)
    config.disable_request_forgery_protection = true
    config.connection_class = -> { ApplicationCable::Connection }
  end
  ARGV[2..].each { |file| load file }
  server = Puma::Server.new(ActionCable.server, Puma::Events.stdio)
  server.add_tcp_listener("127.0.0.1", Integer(ARGV[1]))
  server.run.join
end
