# Sidekiq's API and Web UI, without a server. Works in Sidekiq 6.4, 7.3 and 8.1.
require "json"
require "logger"
require "rack"
require "rack/mock"
require "sidekiq"
require "sidekiq/api"
require "sidekiq/web"

Sidekiq.logger.level = Logger::ERROR if Sidekiq.logger
# Debian 12's Redis client otherwise prints a deprecation warning on every push.
Redis.sadd_returns_boolean = false if defined?(Redis) && Redis.respond_to?(:sadd_returns_boolean=)

# The status and text of a page.
def get(path)
  env = Rack::MockRequest.env_for(path)
  env["rack.session"] = {}
  status, _, body = Sidekiq::Web.call(env)
  text = +""
  body.each { |part| text << part }
  [status, text]
end

def works = defined?(Sidekiq::WorkSet) ? Sidekiq::WorkSet.new : Sidekiq::Workers.new
