package jose

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"

	josev4 "github.com/go-jose/go-jose/v4"
)

// Bounds of a JWK set.
const (
	// MaxKeySet is the longest JWK set that is read, in bytes.
	MaxKeySet = 256 << 10
	maxKeys   = 100
	maxKeyID  = 256
)

// Errors of a JWK set.
var (
	// ErrKeySet is what every error about a set as a whole wraps.
	ErrKeySet = errors.New("not a usable JWK set")
	// ErrNoKeys is wrapped too where the set is well formed and no key of it is
	// admitted: that its issuer has no keys is what the issuer says.
	ErrNoKeys = errors.New("it has no key that can be used")
)

// Algorithms are those that an issuer's keys may sign with, all asymmetric and in
// the order of preference: a key of RSA that does not say its algorithm has the
// first one of RSA. There is no HMAC, so that no public key is ever a secret, and
// there is no "none".
func Algorithms() []string {
	return []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
}

// A verifyingKey is an admitted key with the one algorithm that it is used with
// (RFC 8725 section 3.1, each key with exactly one).
type verifyingKey struct {
	pub crypto.PublicKey
	alg josev4.SignatureAlgorithm
}

// A RefusedKey is a key of a set that is not used.
type RefusedKey struct {
	// KeyID is quoted, since the issuer chose it; empty where there is none.
	KeyID string
	// Why is a short phrase.
	Why string
}

// String is the key with the reason.
func (r RefusedKey) String() string {
	if r.KeyID == "" {
		return "a key without a kid: " + r.Why
	}
	return "key " + r.KeyID + ": " + r.Why
}

// readKeySet admits the keys of a JWK set (RFC 7517 section 5). What libraries
// are known to take and should not is left out here: keys for encryption, for
// another operation, private or symmetric ones, weak ones, those without a kid,
// which no token can name, and all that share one. A set of which nothing is left
// is an error.
func readKeySet(data []byte, algorithms []string) (map[string]verifyingKey, []RefusedKey, error) {
	if len(data) > MaxKeySet {
		return nil, nil, fmt.Errorf("%w: it has more than %d bytes", ErrKeySet, MaxKeySet)
	}
	set, err := object(data)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrKeySet, err)
	}
	var list []json.RawMessage
	if json.Unmarshal(set["keys"], &list) != nil || list == nil {
		return nil, nil, fmt.Errorf("%w: it has no list of keys", ErrKeySet)
	}
	if len(list) > maxKeys {
		return nil, nil, fmt.Errorf("%w: it has %d keys, the limit is %d", ErrKeySet, len(list), maxKeys)
	}
	keys, twice := map[string]verifyingKey{}, map[string]bool{}
	var refused []RefusedKey
	for _, raw := range list {
		kid, k, err := readKey(raw, algorithms)
		switch _, known := keys[kid]; {
		case err != nil:
			r := RefusedKey{Why: err.Error()}
			if kid != "" {
				r.KeyID = fmt.Sprintf("%q", kid)
			}
			refused = append(refused, r)
		case known:
			twice[kid] = true
		default:
			keys[kid] = k
		}
	}
	for kid := range twice {
		delete(keys, kid)
		refused = append(refused, RefusedKey{fmt.Sprintf("%q", kid), "several keys have this kid"})
	}
	if len(keys) == 0 {
		if len(refused) > 0 {
			return nil, refused, fmt.Errorf("%w: %w: %s", ErrKeySet, ErrNoKeys, refused[0])
		}
		return nil, nil, fmt.Errorf("%w: %w", ErrKeySet, ErrNoKeys)
	}
	return keys, refused, nil
}

// private are the members that only a private or symmetric key has (RFC 7518
// section 6).
var private = []string{"d", "p", "q", "dp", "dq", "qi", "oth", "k"}

// readKey admits one JWK. kid is set where the key has one, admitted or not.
func readKey(raw json.RawMessage, algorithms []string) (kid string, k verifyingKey, err error) {
	fields, err := object(raw)
	if err != nil {
		return "", k, err
	}
	if kid, err = optional(fields, "kid"); err != nil || kid == "" || len(kid) > maxKeyID {
		return "", k, errors.New("it has no kid that a token could name")
	}
	for _, name := range private {
		if _, ok := fields[name]; ok {
			return kid, k, errors.New("it is a private or symmetric key, which everybody who reads the set now has")
		}
	}
	if err := forVerifying(fields); err != nil {
		return kid, k, err
	}
	kty, err := optional(fields, "kty")
	if err != nil {
		return kid, k, err
	}
	switch kty {
	case "RSA":
		k.pub, err = readRSA(fields)
	case "EC":
		k.pub, err = readEC(fields)
	case "OKP":
		k.pub, err = readOKP(fields)
	default:
		err = errors.New("its type is not RSA, EC or OKP")
	}
	if err != nil {
		return kid, k, err
	}
	k.alg, err = algorithmOf(fields, k.pub, algorithms)
	return kid, k, err
}

// forVerifying refuses a key that its owner means for something else (RFC 7517
// sections 4.2 and 4.3).
func forVerifying(fields map[string]json.RawMessage) error {
	use, err := optional(fields, "use")
	if err != nil || use != "" && use != "sig" {
		return errors.New("it is not for signatures (use)")
	}
	raw, ok := fields["key_ops"]
	if !ok {
		return nil
	}
	ops, err := audiences(raw) // a list of text, like aud
	if err != nil || raw[0] != '[' || !slices.Contains(ops, "verify") {
		return errors.New("it is not for verifying (key_ops)")
	}
	if slices.ContainsFunc(ops, func(op string) bool { return op != "verify" && op != "sign" }) {
		return errors.New("it is for other operations too (key_ops)")
	}
	return nil
}

// algorithmOf is the one algorithm of a key: what the set says, or else what
// follows from its type.
func algorithmOf(fields map[string]json.RawMessage, pub crypto.PublicKey, allowed []string) (josev4.SignatureAlgorithm, error) {
	can := algorithms(pub)
	said, err := optional(fields, "alg")
	if err != nil {
		return "", err
	}
	for _, alg := range allowed {
		if slices.Contains(can, josev4.SignatureAlgorithm(alg)) && (said == "" || said == alg) {
			return josev4.SignatureAlgorithm(alg), nil
		}
	}
	if said == "" {
		return "", errors.New("no algorithm of the issuer's list is one of its type")
	}
	return "", fmt.Errorf("its algorithm %q is not allowed for its type", said)
}

// readRSA is RFC 7518 section 6.3.1, with the exponent of FIPS 186-5 appendix A.1.1.
func readRSA(fields map[string]json.RawMessage) (crypto.PublicKey, error) {
	n, err := number(fields, "n")
	if err != nil {
		return nil, err
	}
	e, err := number(fields, "e")
	if err != nil {
		return nil, err
	}
	switch bits := n.BitLen(); {
	case bits < 2048 || bits > 8192:
		return nil, fmt.Errorf("RSA of %d bits; 2048 to 8192 are accepted", bits)
	case e.BitLen() > 31 || e.Cmp(big.NewInt(65537)) < 0 || e.Bit(0) == 0:
		return nil, errors.New("the RSA exponent is not an odd number of at least 65537")
	case weakModulus(n):
		return nil, errors.New("the RSA modulus is known to be weak (a small factor, or ROCA, CVE-2017-15361)")
	}
	return &rsa.PublicKey{N: n, E: int(e.Int64())}, nil
}

// readEC is RFC 7518 section 6.2.1: both coordinates in full length, on the curve.
func readEC(fields map[string]json.RawMessage) (crypto.PublicKey, error) {
	name, err := optional(fields, "crv")
	if err != nil {
		return nil, err
	}
	curves := map[string]elliptic.Curve{"P-256": elliptic.P256(), "P-384": elliptic.P384(), "P-521": elliptic.P521()}
	curve := curves[name]
	if curve == nil {
		return nil, errors.New("its curve is not P-256, P-384 or P-521")
	}
	size := (curve.Params().BitSize + 7) / 8
	point := []byte{4}
	for _, coordinate := range []string{"x", "y"} {
		b, err := bytesOf(fields, coordinate)
		if err != nil {
			return nil, err
		}
		if len(b) != size {
			return nil, errors.New("a coordinate has another length than the curve's")
		}
		point = append(point, b...)
	}
	pub, err := ecdsa.ParseUncompressedPublicKey(curve, point)
	if err != nil {
		return nil, errors.New("the point is not on the curve")
	}
	return pub, nil
}

// readOKP is RFC 8037 section 2, for Ed25519.
func readOKP(fields map[string]json.RawMessage) (crypto.PublicKey, error) {
	if crv, err := optional(fields, "crv"); err != nil || crv != "Ed25519" {
		return nil, errors.New("its curve is not Ed25519")
	}
	x, err := bytesOf(fields, "x")
	if err != nil {
		return nil, err
	}
	if len(x) != ed25519.PublicKeySize {
		return nil, errors.New("a key of Ed25519 has 32 bytes")
	}
	return ed25519.PublicKey(x), nil
}

// optional is a member that is text, empty where it is not there.
func optional(fields map[string]json.RawMessage, name string) (string, error) {
	raw, ok := fields[name]
	if !ok {
		return "", nil
	}
	var s string
	if raw[0] != '"' || json.Unmarshal(raw, &s) != nil {
		return "", fmt.Errorf("its %s is not text", name)
	}
	return s, nil
}

// bytesOf is a member in base64url without padding, in its one spelling.
func bytesOf(fields map[string]json.RawMessage, name string) ([]byte, error) {
	s, err := optional(fields, name)
	if err != nil {
		return nil, err
	}
	b, ok := decode64(s)
	if !ok {
		return nil, fmt.Errorf("its %s is not base64url without padding", name)
	}
	return b, nil
}

// number is a Base64urlUInt (RFC 7518 section 2): no leading zero byte.
func number(fields map[string]json.RawMessage, name string) (*big.Int, error) {
	b, err := bytesOf(fields, name)
	if err != nil {
		return nil, err
	}
	if b[0] == 0 {
		return nil, fmt.Errorf("its %s begins with a zero byte", name)
	}
	return new(big.Int).SetBytes(b), nil
}

// decode64 admits the base64url alphabet only: encoding/base64 passes over line
// breaks, and without Strict over left-over bits.
func decode64(s string) ([]byte, bool) {
	for i := 0; i < len(s); i++ {
		if s[i] == '\r' || s[i] == '\n' {
			return nil, false
		}
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	return b, err == nil && len(b) > 0
}
