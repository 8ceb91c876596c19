package link

import (
	"crypto"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"time"

	"github.com/parleymesh/parley/internal/assess"
	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/audit/collect"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/snapshot"
)

// The methods, as gRPC names them.
const (
	JoinService  = "parley.fleet.v1.Join"
	FleetService = "parley.fleet.v1.Fleet"

	methodJoin     = "/" + JoinService + "/Join"
	methodConnect  = "/" + FleetService + "/Connect"
	methodIssue    = "/" + FleetService + "/Issue"
	methodIssueJWT = "/" + FleetService + "/IssueJWT"
	methodCursor   = "/" + FleetService + "/Cursor"
	methodCollect  = "/" + FleetService + "/Collect"
	methodProbe    = "/" + FleetService + "/IssueProbe"
	methodAssessed = "/" + FleetService + "/Assessed"
	methodWitness  = "/" + FleetService + "/Witness"
	methodGrowth   = "/" + FleetService + "/Growth"
)

// A JoinRequest uses a join token.
type JoinRequest struct {
	Protocol int    `json:"protocol"`
	Version  string `json:"version"`
	ID       string `json:"id"`
	Secret   []byte `json:"secret"`
	CSR      []byte `json:"csr"` // DER, PKCS #10
}

// A JoinReply is the agent's first certificate.
type JoinReply struct {
	Host   string   `json:"host"`
	Chain  [][]byte `json:"chain"` // DER, leaf first
	Bundle *Bundle  `json:"bundle"`
}

// A Bundle is an identity.Bundle on the wire and on disk.
type Bundle struct {
	TrustDomain string            `json:"trust_domain"`
	Sequence    uint64            `json:"sequence"`
	Roots       [][]byte          `json:"roots"`    // DER
	JWTKeys     map[string][]byte `json:"jwt_keys"` // SubjectPublicKeyInfo, by key id
}

// NewBundle is b on the wire.
func NewBundle(b *identity.Bundle) (*Bundle, error) {
	w := &Bundle{TrustDomain: b.TrustDomain.String(), Sequence: b.Sequence, Roots: [][]byte{}, JWTKeys: map[string][]byte{}}
	for _, r := range b.Roots {
		w.Roots = append(w.Roots, r.Raw)
	}
	for kid, pub := range b.JWTKeys {
		der, err := x509.MarshalPKIXPublicKey(pub)
		if err != nil {
			return nil, fmt.Errorf("bundle of %s: key %s: %w", b.TrustDomain, kid, err)
		}
		w.JWTKeys[kid] = der
	}
	return w, nil
}

// Bundle reads w.
func (w *Bundle) Bundle() (*identity.Bundle, error) {
	if w == nil {
		return nil, fmt.Errorf("%w: no bundle", ErrMessage)
	}
	td, err := identity.ParseTrustDomain(w.TrustDomain)
	if err != nil {
		return nil, err
	}
	b := &identity.Bundle{TrustDomain: td, Sequence: w.Sequence, JWTKeys: map[string]crypto.PublicKey{}}
	if b.Roots, err = parseChain(w.Roots); err != nil {
		return nil, err
	}
	if len(b.Roots) == 0 {
		return nil, fmt.Errorf("%w: a bundle without a root, by which nobody could be trusted any more", ErrMessage)
	}
	for kid, der := range w.JWTKeys {
		if b.JWTKeys[kid], err = x509.ParsePKIXPublicKey(der); err != nil {
			return nil, fmt.Errorf("bundle of %s: key %s: %w", td, kid, err)
		}
	}
	return b, nil
}

// maxChain bounds the certificates of one list.
const maxChain = 32

func parseChain(list [][]byte) (chain []*x509.Certificate, err error) {
	if len(list) > maxChain {
		return nil, fmt.Errorf("%w: %d certificates", ErrMessage, len(list))
	}
	for _, der := range list {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrMessage, err)
		}
		chain = append(chain, c)
	}
	return chain, nil
}

// RawChain is chain on the wire.
func RawChain(chain []*x509.Certificate) [][]byte {
	out := make([][]byte, len(chain))
	for i, c := range chain {
		out[i] = c.Raw
	}
	return out
}

// An AgentMessage is one message of an agent's stream: exactly one field is set,
// and the first message is a Hello.
type AgentMessage struct {
	Hello  *Hello  `json:"hello,omitempty"`
	Report *Report `json:"report,omitempty"`
	// Settled answers the Settle of the same number.
	Settled uint64 `json:"settled,omitempty"`
	// LogLevel is what the agent logs, at first and whenever that is another. It is sent
	// only to a server that has the capability of that name.
	LogLevel *LogState `json:"log_level,omitempty"`
}

// Kinds is how many of the fields are set: a message has one.
func (m *AgentMessage) Kinds() (n int) {
	for _, set := range []bool{m.Hello != nil, m.Report != nil, m.Settled > 0, m.LogLevel != nil} {
		if set {
			n++
		}
	}
	return n
}

// A LogOrder changes what an agent logs.
type LogOrder struct {
	// Number is told back in LogState.
	Number uint64 `json:"number"`
	// Level is one of package logging; empty is what the agent was started with.
	Level string `json:"level,omitempty"`
	// Seconds is how long, at least 1 where there is a level.
	Seconds int64 `json:"seconds,omitempty"`
}

// A LogState is what an agent logs.
type LogState struct {
	// Number is that of the last order on this stream, 0 for none.
	Number uint64 `json:"number"`
	Level  string `json:"level"`
	// Normal is the level that it was started with, and Until when that is in force
	// again; zero where it is.
	Normal string    `json:"normal"`
	Until  time.Time `json:"until,omitzero"`
}

// A ServerMessage is one message of a server's stream: exactly one field is set,
// and the first message is a Welcome.
type ServerMessage struct {
	Welcome *Hello      `json:"welcome,omitempty"`
	Update  *WireUpdate `json:"update,omitempty"`
	// Settle asks the agent to deliver the events that it has recorded so far.
	Settle uint64 `json:"settle,omitempty"`
	// Assess is what the agent is to try for `parley verify`.
	Assess *assess.Order `json:"assess,omitempty"`
	// Withdraw is for an agent that lacks what the newest snapshot needs.
	Withdraw *Withdrawal `json:"withdraw,omitempty"`
	// LogLevel changes what the agent logs.
	LogLevel *LogOrder `json:"log_level,omitempty"`
}

// kinds is how many of the fields are set.
func (m *ServerMessage) kinds() (n int) {
	for _, set := range []bool{m.Welcome != nil, m.Update != nil, m.Settle > 0, m.Assess != nil, m.Withdraw != nil, m.LogLevel != nil} {
		if set {
			n++
		}
	}
	return n
}

// A Hello is what each side says of itself before anything else.
type Hello struct {
	Protocol     int      `json:"protocol"`
	Version      string   `json:"version"`
	Capabilities []string `json:"capabilities"`
	// Host is the agent's, to be held against its certificate.
	Host string `json:"host,omitempty"`
	// Advertise is where the agent says that its host is reached, an IP address;
	// empty for the address that the server sees.
	Advertise string `json:"advertise,omitempty"`
	// Now is the sender's clock.
	Now time.Time `json:"now"`
}

// UnmarshalJSON implements json.Unmarshaler. It is the one message that is not read
// strictly: a peer of a later version may say more of itself, restricts nothing by
// it, and has to be understood as far as its protocol's number.
func (h *Hello) UnmarshalJSON(data []byte) error {
	type plain Hello
	return json.Unmarshal(data, (*plain)(h))
}

// A WireUpdate is an Update on the wire and on disk. The snapshot is read by
// itself, so that one that is not understood can be refused by its generation.
type WireUpdate struct {
	Generation uint64          `json:"generation"`
	Revision   int64           `json:"revision"`
	Needs      []string        `json:"needs"`
	Snapshot   json.RawMessage `json:"snapshot"`
	Bundle     *Bundle         `json:"bundle"`
	Banned     []identity.ID   `json:"banned"`
}

// NewWireUpdate is u on the wire.
func NewWireUpdate(u *Update) (*WireUpdate, error) {
	snap, err := snapshot.Encode(u.Snapshot)
	if err != nil {
		return nil, err
	}
	bundle, err := NewBundle(u.Bundle)
	if err != nil {
		return nil, err
	}
	return &WireUpdate{
		Generation: u.Generation, Revision: u.Snapshot.Revision, Needs: Needs(u.Snapshot),
		Snapshot: snap, Bundle: bundle, Banned: append([]identity.ID{}, u.Banned...),
	}, nil
}

// Update reads w, all of it or nothing.
func (w *WireUpdate) Update() (*Update, error) {
	if missing := Lacks(Capabilities(), w.Needs); len(missing) > 0 {
		return nil, fmt.Errorf("%w: revision %d needs %q, which this agent does not have", ErrMessage, w.Revision, missing)
	}
	snap, err := snapshot.Decode(w.Snapshot)
	if err != nil {
		return nil, err
	}
	bundle, err := w.Bundle.Bundle()
	if err != nil {
		return nil, err
	}
	if bundle.TrustDomain != snap.TrustDomain || snap.Revision != w.Revision {
		return nil, fmt.Errorf("%w: bundle and snapshot do not belong together", ErrMessage)
	}
	return &Update{Generation: w.Generation, Snapshot: snap, Bundle: bundle, Banned: w.Banned}, nil
}

// An IssueRequest asks for a certificate, or with an audience for a token, of ID.
type IssueRequest struct {
	ID       identity.ID `json:"id"`
	CSR      []byte      `json:"csr,omitempty"`
	Audience []string    `json:"audience,omitempty"`
}

// A ProbeRequest asks for a certificate for probes as ID, with a flaw that is named
// as the check is which needs it, or none.
type ProbeRequest struct {
	ID   identity.ID  `json:"id"`
	Flaw assess.Check `json:"flaw,omitempty"`
	CSR  []byte       `json:"csr"`
}

// An AssessedReply says that results arrived.
type AssessedReply struct{}

// An IssueReply is what was issued.
type IssueReply struct {
	Chain   [][]byte  `json:"chain,omitempty"`
	Token   string    `json:"token,omitempty"`
	Expires time.Time `json:"expires,omitzero"`
}

// A CollectRequest hands over entries of a log; without entries it asks how many
// there are.
type CollectRequest struct {
	Log     string        `json:"log"`
	Entries []audit.Entry `json:"entries,omitempty"`
}

// A CollectReply is the index that comes next.
type CollectReply struct {
	Next uint64 `json:"next"`
}

// A WitnessRequest is what an agent says of its log: see collect.Statement, whose
// host is that of the certificate.
type WitnessRequest struct {
	Log  string `json:"log"`
	Key  string `json:"key"`
	Note []byte `json:"note"`
}

// A WitnessReply is the receipt, empty where there is none yet.
type WitnessReply struct {
	Receipt []byte `json:"receipt,omitempty"`
}

// A GrowthRequest asks what the server's own log has become since it had so many
// entries.
type GrowthRequest struct {
	Have uint64 `json:"have"`
}

// A GrowthReply is a collect.Growth.
type GrowthReply struct {
	Key   string   `json:"key"`
	Note  []byte   `json:"note"`
	Proof [][]byte `json:"proof,omitempty"`
}

// NewGrowthReply is g on the wire.
func NewGrowthReply(g *collect.Growth) *GrowthReply {
	r := &GrowthReply{Key: g.Key, Note: g.Note}
	for _, h := range g.Proof {
		r.Proof = append(r.Proof, h[:])
	}
	return r
}

// growth reads r.
func (r *GrowthReply) growth() (*collect.Growth, error) {
	g := &collect.Growth{Key: r.Key, Note: r.Note}
	for _, h := range r.Proof {
		if len(h) != len(audit.Hash{}) {
			return nil, fmt.Errorf("%w: a hash of %d bytes", ErrMessage, len(h))
		}
		g.Proof = append(g.Proof, audit.Hash(h))
	}
	return g, nil
}
