package checkpoint

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strings"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"golang.org/x/mod/sumdb/note"
)

// The signature types of C2SP signed-note: the byte before a public key.
const (
	algLog     = 1 // Ed25519 over the text
	algWitness = 4 // Ed25519 over time and text: cosignature/v1
)

const maxKeyText = 1024

// A Signer is the private key of a log. With the same key it cosigns, as a witness,
// the checkpoints of other logs: the two kinds of signature have different key ids
// and cannot be taken for each other. It is safe for concurrent use.
type Signer struct {
	name string
	key  ed25519.PrivateKey
	hash uint32
	// begin is what stands between a text and its signature.
	begin string
}

// GenerateKey makes the key of the log that is called name: an Origin.
func GenerateKey(name string) (*Signer, error) {
	seed := make([]byte, ed25519.SeedSize)
	rand.Read(seed) // never returns an error (crypto/rand)
	return newSigner(name, seed)
}

func newSigner(name string, seed []byte) (*Signer, error) {
	if !validName(name) {
		return nil, fmt.Errorf("%q: %w", name, ErrName)
	}
	s := &Signer{name: name, key: ed25519.NewKeyFromSeed(seed), begin: "\n— " + name + " "}
	s.hash = s.Verifier().hash
	return s, nil
}

// ParseSigner reads what Marshal wrote.
func ParseSigner(text []byte) (*Signer, error) {
	parts := strings.SplitN(string(text), "+", 5) // the base64 at the end may have one in it
	if len(parts) != 5 {
		return nil, fmt.Errorf("%w: a private key", ErrKey)
	}
	raw, err := decodeBase64(parts[4])
	if err != nil || len(raw) != 1+ed25519.SeedSize {
		return nil, fmt.Errorf("%w: a private key", ErrKey)
	}
	s, err := newSigner(parts[2], raw[1:])
	if err != nil {
		return nil, err
	}
	if string(s.Marshal()) != string(text) {
		return nil, fmt.Errorf("%w: a private key", ErrKey)
	}
	return s, nil
}

// Marshal is the private key as text, in the form of golang.org/x/mod/sumdb/note.
// It is secret: whoever stores it seals it.
func (s *Signer) Marshal() []byte {
	raw := append([]byte{algLog}, s.key.Seed()...)
	return fmt.Appendf(nil, "PRIVATE+KEY+%s+%08x+%s", s.name, s.hash, base64.StdEncoding.EncodeToString(raw))
}

// Format implements fmt.Formatter: no verb prints the key.
func (s *Signer) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "the key of %s", s.name) }

// Name is the origin of the log whose key it is.
func (s *Signer) Name() string { return s.name }

// Verifier is the public key for the log's own checkpoints.
func (s *Signer) Verifier() *Verifier { return newVerifier(s.name, algLog, s.public()) }

// Witness is the public key for what s cosigned.
func (s *Signer) Witness() *Verifier { return newVerifier(s.name, algWitness, s.public()) }

func (s *Signer) public() ed25519.PublicKey { return s.key.Public().(ed25519.PublicKey) }

// Sign appends the signed checkpoint of the log: so many entries, this root. It
// allocates nothing where dst is large enough.
func (s *Signer) Sign(dst []byte, size uint64, root audit.Hash) []byte {
	start := len(dst)
	dst = Checkpoint{Origin: s.name, Size: size, Root: root}.AppendText(dst)
	var raw [4 + ed25519.SignatureSize]byte
	binary.BigEndian.PutUint32(raw[:], s.hash)
	copy(raw[4:], ed25519.Sign(s.key, dst[start:]))
	dst = append(dst, s.begin...)
	dst = base64.StdEncoding.AppendEncode(dst, raw[:])
	return append(dst, '\n')
}

// Cosign is n with the cosignature of s, as of at, in place of an earlier one of
// s. It states that s knows of no larger tree of that log, and none that n is not
// consistent with: the caller has made sure of that.
func (s *Signer) Cosign(n *Note, at time.Time) ([]byte, error) {
	return note.Sign(&n.note, cosigner{s, at})
}

// A cosigner is a note.Signer of cosignature/v1.
type cosigner struct {
	*Signer
	at time.Time
}

// KeyHash implements note.Signer.
func (c cosigner) KeyHash() uint32 { return c.Witness().hash }

// Sign implements note.Signer.
func (c cosigner) Sign(text []byte) ([]byte, error) {
	at := c.at.Unix()
	if at < 0 {
		return nil, fmt.Errorf("cosign: the time %s is before 1970", c.at)
	}
	sig := binary.BigEndian.AppendUint64(nil, uint64(at))
	return append(sig, ed25519.Sign(c.key, cosigned(at, text))...), nil
}

// cosigned is what a cosignature signs.
func cosigned(at int64, text []byte) []byte {
	return fmt.Appendf(nil, "cosignature/v1\ntime %d\n%s", at, text)
}

// A Verifier is a public key, of a log or of a witness.
type Verifier struct {
	name string
	alg  byte
	key  ed25519.PublicKey
	hash uint32
}

func newVerifier(name string, alg byte, key ed25519.PublicKey) *Verifier {
	sum := sha256.Sum256(append(append([]byte(name), '\n', alg), key...))
	return &Verifier{name: name, alg: alg, key: key, hash: binary.BigEndian.Uint32(sum[:])}
}

// ParseVerifier reads the text of a public key, the vkey of C2SP signed-note; white
// space around it is left out.
func ParseVerifier(text string) (*Verifier, error) {
	text = strings.TrimSpace(text)
	if len(text) > maxKeyText {
		return nil, fmt.Errorf("%w: it is %d bytes long", ErrKey, len(text))
	}
	parts := strings.SplitN(text, "+", 3) // the base64 at the end may have one in it
	if len(parts) < 3 {
		return nil, fmt.Errorf("%w: %q is not NAME+ID+KEY", ErrKey, text)
	}
	raw, err := decodeBase64(parts[2])
	if err != nil || len(raw) != 1+ed25519.PublicKeySize || raw[0] != algLog && raw[0] != algWitness {
		return nil, fmt.Errorf("%w: of %q the last part is not an Ed25519 key of a log or witness", ErrKey, text)
	}
	if !validName(parts[0]) {
		return nil, fmt.Errorf("%w: %q: %w", ErrKey, text, ErrName)
	}
	v := newVerifier(parts[0], raw[0], raw[1:])
	if v.String() != text {
		return nil, fmt.Errorf("%w: of %q the id is not %08x", ErrKey, text, v.hash)
	}
	return v, nil
}

// String is the text of the key, which ParseVerifier reads.
func (v *Verifier) String() string {
	return fmt.Sprintf("%s+%08x+%s", v.name, v.hash, base64.StdEncoding.EncodeToString(append([]byte{v.alg}, v.key...)))
}

// Witness says whether it is the key of a witness.
func (v *Verifier) Witness() bool { return v.alg == algWitness }

// Name implements note.Verifier: the origin of a log, or a witness's name.
func (v *Verifier) Name() string { return v.name }

// KeyHash implements note.Verifier.
func (v *Verifier) KeyHash() uint32 { return v.hash }

// Verify implements note.Verifier.
func (v *Verifier) Verify(text, sig []byte) bool {
	if v.alg == algLog {
		return ed25519.Verify(v.key, text, sig)
	}
	at, ok := cosignedAt(sig)
	return ok && ed25519.Verify(v.key, cosigned(at, text), sig[8:])
}

// cosignedAt is the time of a cosignature.
func cosignedAt(sig []byte) (at int64, ok bool) {
	if len(sig) != 8+ed25519.SignatureSize {
		return 0, false
	}
	at = int64(binary.BigEndian.Uint64(sig))
	return at, at >= 0
}
