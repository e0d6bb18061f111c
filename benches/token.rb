# Installation tokens without sidebake, as in GitHub's documentation.

require 'base64'
require 'json'
require 'net/http'
require 'openssl'

module Token
  module_function

  def mint(world)
    uri = URI("#{world.github_api}/app/installations/#{World::INSTALLATION}/access_tokens")
    headers = { 'Authorization' => "Bearer #{jwt(File.read(world.path('app.pem')))}", 'Accept' => 'application/vnd.github+json' }
    answer = Net::HTTP.post(uri, '{}', headers)
    answer.is_a?(Net::HTTPCreated) or raise Unmeasurable, "no installation token: #{answer.body}"
    JSON.parse(answer.body).fetch('token')
  end

  def jwt(private_key)
    time = Time.now.to_i
    parts = [{ alg: 'RS256', typ: 'JWT' }, { iat: time - 60, exp: time + 540, iss: '1' }]
    text = parts.map { |part| encode(JSON.generate(part)) }.join('.')
    "#{text}.#{encode(OpenSSL::PKey::RSA.new(private_key).sign('SHA256', text))}"
  end

  def encode(text) = Base64.urlsafe_encode64(text, padding: false)
end
