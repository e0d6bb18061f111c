# What the registry itself says about an image.

require 'net/http'

MANIFESTS = %w[oci.image.index.v1 oci.image.manifest.v1 docker.distribution.manifest.v2 docker.distribution.manifest.list.v2]
            .map { |kind| "application/vnd.#{kind}+json" }.join(', ').freeze

# The digest under which it has acme/IMAGE:TAG, or nil.
def digest_in_registry(image, tag)
  uri = URI("http://#{ENV.fetch('REGISTRY')}/v2/acme/#{image}/manifests/#{tag}")
  answer = Net::HTTP.start(uri.host, uri.port, nil) { |http| http.head(uri.path, 'Accept' => MANIFESTS) }
  answer['Docker-Content-Digest'] if answer.is_a?(Net::HTTPOK)
end

# Stops with one sentence unless the registry has what the callback says.
def same_in_registry!(target, tag)
  image, told = target.fetch_values('name', 'digest')
  found = digest_in_registry(image, tag)
  abort "The registry has no acme/#{image}:#{tag}." unless found
  abort "The registry has #{found} for #{image}, the callback said #{told}." unless found == told
  found
end
