# What metrics and traces cost: empty jobs a second and the memory of a worker, with and without them. Prometheus' scrapes come
# every five seconds; the collector takes everything and keeps nothing.

require 'net/http'
require 'socket'

class Observed
  N_JOBS = Figures.sized(60_000, 2000)
  SLOTS = 10
  LOOK = 0.02 # seconds
  EVERY = Figures.sized(5, 0.2) # seconds between two scrapes
  SIDES = %i[plain metrics both].freeze

  # One run: jobs a second, processor microseconds of a job, resident megabytes at the end.
  Run = Struct.new(:jobs, :cpu, :resident)

  def initialize(world, runs)
    @world = world
    @runs = runs
  end

  # The bars.
  def measure
    @seen = Hash.new { |all, side| all[side] = [] }
    @n_scrapes = @n_exports = 0
    collecting do |collector|
      @collector = collector
      # Turn about, and each side first as often as the others.
      @runs.times { |n| SIDES.rotate(n).each { |side| @seen[side] << run(side) } }
    end
    print_figures
    bars
  end

  private

  # A collector of OpenTelemetry's traces.
  def collecting
    server = TCPServer.new('127.0.0.1', 0)
    accepting = Thread.new { loop { Thread.new(server.accept) { |client| collect(client) } } }
    yield "http://127.0.0.1:#{server.addr[1]}"
  ensure
    accepting&.kill
    server&.close
  end

  # Answers every request of a connection.
  def collect(client)
    while (line = client.gets)
      length = 0
      until (line = client.gets.to_s.chomp).empty?
        length = line.split[1].to_i if line.downcase.start_with?('content-length:')
      end
      client.read(length)
      @n_exports += 1
      client.write("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    end
  rescue IOError, SystemCallError
    nil
  end

  def run(side)
    port = Addrinfo.tcp('127.0.0.1', 0).bind { |socket| socket.local_address.ip_port }
    variables = {}
    variables[:SIDEBAKE__HEALTH__LISTEN] = "127.0.0.1:#{port}" unless side == :plain
    variables[:SIDEBAKE__TRACES__ENDPOINT] = @collector if side == :both
    @world.push_many('observed', N_JOBS)
    @world.with(@world.start_worker('-c', SLOTS.to_s, '-q', 'observed', **variables)) do |worker|
      scraping(side == :plain ? nil : port) { rate(worker) }
    end
  end

  def scraping(port)
    scrape = port && Thread.new do
      loop do
        sleep EVERY
        @n_scrapes += 1 if Net::HTTP.get_response('127.0.0.1', '/metrics', port).is_a?(Net::HTTPOK)
      end
    end
    yield
  ensure
    scrape&.kill
  end

  def rate(worker)
    sleep 0.001 until @world.length('observed') < N_JOBS
    rest, cpu, started = @world.length('observed'), worker.cpu, Figures.now
    sleep LOOK while @world.length('observed').positive?
    Run.new(rest / (Figures.now - started), (worker.cpu - cpu) / rest * 1e6, worker.resident.first)
  end

  def median(side, field) = Figures.median_of(@seen[side], &field)

  def print_figures
    puts '', "observed: empty jobs with #{SLOTS} slots; medians of #{@runs} runs"
    rows = SIDES.map { |side| [side.to_s, *%i[jobs cpu resident].map { |field| format('%.1f', median(side, field)) }] }
    puts Figures.table(['', 'jobs a second', 'µs of CPU', 'MB resident'], *rows)
    puts "  #{@n_scrapes} scrapes and #{@n_exports} requests to the collector"
  end

  def bars
    jobs = SIDES.map { |side| median(side, :jobs) }
    resident = SIDES.map { |side| median(side, :resident) }
    [
      Bar.new(name: 'jobs a second with metrics', ours: format('%.0f', jobs[1]), theirs: format('without %.0f', jobs[0]),
              ratio: Figures.times(jobs[1], jobs[0]), asked: '>= 0.99', is_met: jobs[1] >= 0.99 * jobs[0]),
      Bar.new(name: 'the same with traces too', ours: format('%.0f', jobs[2]), theirs: format('without %.0f', jobs[0]),
              ratio: Figures.times(jobs[2], jobs[0]), asked: '>= 0.99', is_met: jobs[2] >= 0.99 * jobs[0]),
      Bar.new(name: 'memory of both', ours: format('%.1f MB', resident[2]), theirs: format('without %.1f MB', resident[0]),
              ratio: format('%+.1f MB', resident[2] - resident[0]), asked: '<= 2 MB', is_met: resident[2] - resident[0] <= 2)
    ]
  end
end
