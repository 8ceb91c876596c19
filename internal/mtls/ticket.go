package mtls

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"time"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/identity"
)

// ticketMark begins our entry in SessionState.Extra; others may add theirs.
const ticketMark = "parley.mtls.2"

// A binding is what a session ticket is good for.
type binding struct {
	epoch    uint64    // identity.Trust.Epoch at the authentication
	notAfter time.Time // end of the client's leaf, to the second
	// own is the server's leaf, by the beginning of its SHA-256. A resumed session
	// carries on with the certificate of the first one: without this, connections
	// made long after a renewal would still be the old certificate's, and at its end
	// be refused by the client.
	own [ownSize]byte
}

const (
	ownSize     = 16
	bindingSize = 16 + ownSize
)

// bindTickets makes cfg's tickets carry a binding and decline a stale one.
// Declining is silent (nil, nil): the client then authenticates in full, and
// the ticket it gets is good again. An error would fail the handshake, and the
// client would come back with the same ticket.
func bindTickets(cfg *tls.Config, src identity.Source, clk clock.Clock) {
	cfg.WrapSession = func(cs tls.ConnectionState, ss *tls.SessionState) ([]byte, error) {
		trust := src.Trust()
		own, err := src.Credential()
		if trust == nil || err != nil || len(cs.PeerCertificates) == 0 {
			return nil, ErrNoTrust
		}
		// A resumed session carries the first one's entries; ours is replaced.
		ss.Extra = append(dropBindings(ss.Extra), binding{trust.Epoch, cs.PeerCertificates[0].NotAfter, mark(own)}.encode())
		return cfg.EncryptTicket(cs, ss)
	}
	cfg.UnwrapSession = func(ticket []byte, cs tls.ConnectionState) (*tls.SessionState, error) {
		ss, err := cfg.DecryptTicket(ticket, cs)
		if err != nil || ss == nil {
			return nil, nil //nolint:nilerr // any unreadable ticket is one to decline
		}
		b, ok := findBinding(ss.Extra)
		trust := src.Trust()
		own, err := src.Credential()
		if !ok || trust == nil || err != nil || b.epoch != trust.Epoch || b.own != mark(own) || clk.Now().After(b.notAfter) {
			return nil, nil //nolint:nilerr // without a credential the full handshake says so
		}
		return ss, nil
	}
}

// mark is a credential's leaf as a binding has it.
func mark(c *identity.Credential) [ownSize]byte {
	sum := sha256.Sum256(c.Chain[0].Raw)
	return [ownSize]byte(sum[:ownSize])
}

func (b binding) encode() []byte {
	buf := append(make([]byte, 0, len(ticketMark)+bindingSize), ticketMark...)
	buf = binary.BigEndian.AppendUint64(buf, b.epoch)
	buf = binary.BigEndian.AppendUint64(buf, uint64(b.notAfter.Unix()))
	return append(buf, b.own[:]...)
}

func decodeBinding(entry []byte) (binding, bool) {
	rest, ok := bytes.CutPrefix(entry, []byte(ticketMark))
	if !ok || len(rest) != bindingSize {
		return binding{}, false
	}
	return binding{
		epoch:    binary.BigEndian.Uint64(rest),
		notAfter: time.Unix(int64(binary.BigEndian.Uint64(rest[8:])), 0),
		own:      [ownSize]byte(rest[16:]),
	}, true
}

// findBinding wants exactly one: two would leave open which holds.
func findBinding(extra [][]byte) (found binding, ok bool) {
	for _, e := range extra {
		b, is := decodeBinding(e)
		if is && ok {
			return binding{}, false
		}
		if is {
			found, ok = b, true
		}
	}
	return found, ok
}

func dropBindings(extra [][]byte) [][]byte {
	var kept [][]byte
	for _, e := range extra {
		if !bytes.HasPrefix(e, []byte(ticketMark)) {
			kept = append(kept, e)
		}
	}
	return kept
}
