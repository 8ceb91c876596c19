package mesh

import "time"

// The keys of the edge beside routes: whose tokens are accepted, and what stands
// in front of a gateway. Like those of File, the comments are the manual.

// An Issuer is whose tokens routes can accept. Where its keys are is said by one of
// jwks_uri, jwks_file and keys, or by none of them: then its metadata is asked for
// (OpenID Connect Discovery, RFC 8414).
type Issuer struct {
	// The issuer's URL, exactly as it stands in iss of its tokens: a slash at the
	// end makes another issuer.
	Issuer string `yaml:"issuer" schema:"required,pattern=^https://" hint:"state its URL as it stands in iss: issuer: https://id.shop.example"`
	// Where its JWK set is, instead of what its metadata says.
	JWKSURI string `yaml:"jwks_uri" schema:"pattern=^https://"`
	// The absolute path of its JWK set on the gateway's host, read again every few
	// minutes.
	JWKSFile string `yaml:"jwks_file" schema:"pattern=^/"`
	// Its public keys themselves. They change with the mesh file only.
	Keys []*JWK `yaml:"keys" schema:"nonempty"`
	// The algorithms that its keys may be used with, in order of preference. Each
	// key is used with one: its alg, or else the first here of its type. Without it
	// RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, ES512 and EdDSA.
	Algorithms []string `yaml:"algorithms" schema:"nonempty"`
	// The types (typ) of its tokens that are accepted: at+jwt, JWT, and absent for
	// those that do not say. Without it at+jwt and JWT.
	Types []string `yaml:"types" schema:"nonempty"`
	// By how much its clock and this host's may differ, for exp, nbf and iat, 0s to
	// 5m. Tokens are good for that much longer.
	ClockSkew time.Duration `yaml:"clock_skew" schema:"default=30s"`
	// How long after iat a token is accepted, whatever its exp, from 1m. Without it
	// exp alone says so.
	MaxAge time.Duration `yaml:"max_age"`
	// How long keys are used that cannot be loaded again, 1m to 168h. After that the
	// issuer's tokens are refused with 503.
	MaxStale time.Duration `yaml:"max_stale" schema:"default=1h"`
	// Hosts that may be asked for its keys beside those of issuer and jwks_uri,
	// where its metadata names another one.
	Hosts []string `yaml:"hosts" schema:"nonempty"`
	// Hosts of the issuer that may be on private addresses or on this host; all
	// others may not. Link-local addresses are reached only where the address itself
	// stands here.
	PrivateHosts []string `yaml:"private_hosts" schema:"nonempty"`
	// The absolute path of the roots to trust for it instead of the host's, PEM.
	CA string `yaml:"ca" schema:"pattern=^/"`
}

// A JWK is a public key (RFC 7517, RFC 7518 section 6, RFC 8037).
type JWK struct {
	// The type: RSA, EC or OKP.
	Kty string `yaml:"kty" json:"kty" schema:"required,enum=RSA|EC|OKP"`
	// The name that tokens have it by.
	Kid string `yaml:"kid" json:"kid" schema:"required,numeric"`
	// The one algorithm that it is used with.
	Alg string `yaml:"alg" json:"alg,omitempty"`
	// What it is for: sig.
	Use string `yaml:"use" json:"use,omitempty"`
	// What it is for, as a list: verify.
	KeyOps []string `yaml:"key_ops" json:"key_ops,omitempty"`
	// The curve of an EC or OKP key: P-256, P-384, P-521 or Ed25519.
	Crv string `yaml:"crv" json:"crv,omitempty"`
	// The x coordinate of an EC key, or the whole OKP key, in base64url.
	X string `yaml:"x" json:"x,omitempty" schema:"numeric"`
	// The y coordinate of an EC key, in base64url.
	Y string `yaml:"y" json:"y,omitempty" schema:"numeric"`
	// The modulus of an RSA key, in base64url.
	N string `yaml:"n" json:"n,omitempty" schema:"numeric"`
	// The exponent of an RSA key, in base64url.
	E string `yaml:"e" json:"e,omitempty"`
}

// A JWT says which tokens are good for a route.
type JWT struct {
	// The issuer, by its name under issuers or by its URL. Parse makes it the URL.
	Issuer string `yaml:"issuer" schema:"required" hint:"name an issuer that stands under issuers"`
	// Whom the token must be for: one of its aud, compared exactly.
	Audience string `yaml:"audience" schema:"required" hint:"say what stands in aud of tokens for this API: audience: orders"`
	// The scopes that the token must all carry. Without it any token for the
	// audience.
	Scopes []string `yaml:"scopes" schema:"nonempty"`
}

// A Redirect sends plaintext HTTP to the gateway, written as its address alone or
// as a mapping. Only hosts that the routes or the mesh's own certificate name are
// redirected, and no request that carries a credential.
type Redirect struct {
	// The address for plaintext HTTP, host:port, usually ":80".
	Listen string `yaml:"listen" schema:"required" hint:"state the address for plaintext HTTP: listen: \":80\""`
	// The port where clients find the gateway. Without it that of its listen.
	Port int `yaml:"port"`
}

// HSTS tells browsers to come by HTTPS only (RFC 6797). A browser keeps to it for
// as long as it was told, for every port of the host.
type HSTS struct {
	// For how long, 0s to 17520h (two years); 0s takes back what was said before.
	MaxAge time.Duration `yaml:"max_age" schema:"required" hint:"say for how long: max_age: 8760h"`
	// Whether it holds for every name below the host too.
	IncludeSubdomains bool `yaml:"include_subdomains"`
}

// TrustedProxies are in front of a gateway, and believed in X-Forwarded-For. It is
// read from the right: the connection's own address is the first hop, and each
// address that is one of from leads on to the one before it, hops times at most.
type TrustedProxies struct {
	// How many proxies a request passes at most, 1 to 16.
	Hops int `yaml:"hops" schema:"default=1"`
	// The networks or addresses that they are at.
	From []string `yaml:"from" schema:"required,nonempty" hint:"name their addresses: from: [10.0.0.0/24]"`
}
