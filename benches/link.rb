# A network between a client and a port of this machine: a relay that adds delay and limits bandwidth. The kernel's
# netem would do the same, but it needs root, and not every kernel has it.
#
# All connections share the bandwidth, which is the same in both directions. The model includes the round trip of a TCP
# handshake, but no lost packets and no TCP slow start.

require 'socket'
require_relative 'figures'

class Link
  ROUND_TRIP = 0.02 # seconds
  RATE = 100e6 / 8 # bytes a second
  WORDS = '20 ms and 100 Mbit/s'.freeze
  QUEUE = 0.02 # seconds of bandwidth to use in advance, because threads wake up late
  CHUNK = 16 << 10

  # One direction of the network.
  class Lane
    attr_reader :n_bytes

    def initialize
      @mutex = Mutex.new
      @free_at = 0
      @n_bytes = 0
    end

    # When the last of this many bytes leaves, if they arrive at `ready`.
    def take(n_bytes, ready)
      @mutex.synchronize do
        @n_bytes += n_bytes
        @free_at = [@free_at, ready].max + n_bytes / RATE
      end
    end
  end

  def initialize(port)
    @port = port
    @server = TCPServer.new('127.0.0.1', 0)
    @up, @down = Lane.new, Lane.new
    @acceptor = Thread.new { loop { Thread.new(@server.accept) { |client| relay(client) } } }
  end

  def url = "http://127.0.0.1:#{@server.addr[1]}"

  # Bytes in both directions so far.
  def n_bytes = @up.n_bytes + @down.n_bytes

  def stop
    @acceptor.kill
    @server.close
  end

  private

  def relay(client)
    connected_at = Figures.now + ROUND_TRIP
    server = TCPSocket.new('127.0.0.1', @port)
    [client, server].each { |socket| socket.setsockopt(Socket::IPPROTO_TCP, Socket::TCP_NODELAY, 1) }
    [carry(client, server, @up, connected_at), carry(server, client, @down, connected_at)].flatten.each(&:join)
  ensure
    [client, server].compact.each(&:close)
  end

  # The threads of one direction. Bytes can leave while earlier ones are on their way.
  def carry(from, to, lane, connected_at)
    on_its_way = Queue.new
    [Thread.new { leave(from, lane, connected_at, on_its_way) }, Thread.new { arrive(on_its_way, to) }]
  end

  def leave(from, lane, connected_at, on_its_way)
    loop do
      chunk = from.readpartial(CHUNK)
      left_at = lane.take(chunk.bytesize, [Figures.now, connected_at].max)
      on_its_way << [left_at + ROUND_TRIP / 2, chunk]
      sleep_until(left_at - QUEUE)
    end
  rescue EOFError, SystemCallError
    on_its_way.close
  end

  def arrive(on_its_way, to)
    while (at, chunk = on_its_way.pop)
      sleep_until(at)
      to.write(chunk)
    end
    to.close_write
  rescue SystemCallError
    # The receiver has closed the connection, so it has everything it needs.
  end

  def sleep_until(at)
    seconds = at - Figures.now
    sleep seconds if seconds.positive?
  end
end
