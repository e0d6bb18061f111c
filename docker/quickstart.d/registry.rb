# Asks the registry itself about an image.

require 'net/http'

MANIFESTS = %w[oci.image.index.v1 oci.image.manifest.v1 docker.distribution.manifest.v2 docker.distribution.manifest.list.v2]
            .map { |kind| "application/vnd.#{kind}+json" }.join(', ').freeze

# The digest of acme/IMAGE:TAG in the registry, or nil.
def digest_in_registry(image, tag)
  uri = URI("http://#{ENV.fetch('REGISTRY')}/v2/acme/#{image}/manifests/#{tag}")
  answer = Net::HTTP.start(uri.host, uri.port, nil) { |http| http.head(uri.path, 'Accept' => MANIFESTS) }
  answer['Docker-Content-Digest'] if answer.is_a?(Net::HTTPOK)
end

# Exits with one sentence unless the registry has the digest that the callback reports.
def same_in_registry!(target, tag)
  image, told = target.fetch_values('name', 'digest')
  found = digest_in_registry(image, tag)
  abort "The registry has no acme/#{image}:#{tag}." unless found
  abort "The registry has #{found} for #{image}, the callback reports #{told}." unless found == told
  found
end
