package audit_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"strings"
	"testing"

	"github.com/parleymesh/parley/internal/audit"
)

// ofPerson is an event of alice, encoded.
func ofPerson(t testing.TB) (*audit.Event, []byte) {
	t.Helper()
	e := typical(t)
	e.Private = new(audit.Private)
	e.Private.Hold("alice", "192.0.2.7:4711")
	body, err := audit.Encode(nil, e)
	if err != nil {
		t.Fatal(err)
	}
	return e, body
}

// What is committed to has the person's commitment and nothing of the person, and
// the leaf is that of it alone.
func TestCommitted(t *testing.T) {
	t.Parallel()
	_, body := ofPerson(t)
	committed := audit.Committed(body)
	for _, secret := range []string{"alice", "192.0.2.7", "salt", "private"} {
		if !bytes.Contains(body, []byte(secret)) || bytes.Contains(committed, []byte(secret)) {
			t.Errorf("%q is not in the body alone:\n%s\n%s", secret, body, committed)
		}
	}
	if want := sha256.Sum256(append([]byte{0}, committed...)); audit.LeafHash(body) != want || audit.LeafHash(committed) != want {
		t.Errorf("the leaf is not the hash of what is committed")
	}
	private, ok := bytes.CutPrefix(body[len(committed)-1:], []byte(`,"private":`))
	if !ok {
		t.Fatalf("the private member is not last: %s", body)
	}
	person := sha256.Sum256(append([]byte("parley audit private v1\x00"), bytes.TrimSuffix(private, []byte("}"))...))
	if text := `"person":"` + base64.RawURLEncoding.EncodeToString(person[:]) + `"`; !bytes.Contains(committed, []byte(text)) {
		t.Errorf("%s is not in\n%s", text, committed)
	}
	e, err := audit.Decode(committed)
	if err != nil || e.Private != nil || audit.Commitment(person) != e.Caller.Person {
		t.Errorf("Decode of what is committed: %+v, %v", e, err)
	}
	if again := audit.Committed(committed); !bytes.Equal(again, committed) {
		t.Errorf("twice: %s", again)
	}
}

// A text that looks like the member is none.
func TestCommittedIgnoresTexts(t *testing.T) {
	t.Parallel()
	e := typical(t)
	e.Private = nil
	e.Message, e.Trace.ParentID = `x,"private":{"salt":"`, `,"private":{}}`
	body, err := audit.Encode(nil, e)
	if err != nil {
		t.Fatal(err)
	}
	if got := audit.Committed(body); !bytes.Equal(got, body) {
		t.Errorf("%s\nis committed as\n%s", body, got)
	}
}

func TestWipe(t *testing.T) {
	t.Parallel()
	e, body := ofPerson(t)
	leaf, committed := audit.LeafHash(body), audit.Committed(body)
	short := audit.Wipe(body)
	if !bytes.Equal(short, committed) || audit.LeafHash(body) != leaf || !bytes.Equal(audit.Committed(body), committed) {
		t.Errorf("wiped:\n%s\n%s", body, short)
	}
	if bytes.Contains(body, []byte("alice")) || bytes.Contains(body, []byte(base64.RawURLEncoding.EncodeToString(e.Private.Salt[:]))) {
		t.Errorf("it is still there: %s", body)
	}
	if again := audit.Wipe(body); !bytes.Equal(again, short) {
		t.Errorf("twice: %s", again)
	}
	if _, err := audit.Decode(body); !errors.Is(err, audit.ErrCanonical) {
		t.Errorf("spaces are an event: %v", err)
	}
}

// Each event has another commitment to the same person.
func TestSaltIsFresh(t *testing.T) {
	t.Parallel()
	var p, q audit.Private
	p.Hold("alice", "a")
	q.Hold("alice", "a")
	if p.Salt == q.Salt || p.Salt == (audit.Salt{}) {
		t.Errorf("salts %x and %x", p.Salt, q.Salt)
	}
	got, err := audit.Encode([]byte("x"), &audit.Event{Private: &audit.Private{Subject: "alice"}})
	if !errors.Is(err, audit.ErrSalt) || string(got) != "x" {
		t.Errorf("without a salt: %q, %v", got, err)
	}
}

func TestDecodeHoldsTheCommitment(t *testing.T) {
	t.Parallel()
	_, body := ofPerson(t)
	person := `"person":"`
	i := bytes.Index(body, []byte(person)) + len(person)
	for name, bad := range map[string]string{
		"another subject":      strings.Replace(string(body), "alice", "carol", 1),
		"another address":      strings.Replace(string(body), "192.0.2.7", "192.0.2.8", 1),
		"another commitment":   string(body[:i]) + strings.Repeat("A", 43) + string(body[i+43:]),
		"no commitment":        string(body[:i-len(person)-1]) + string(body[i+44:]),
		"short commitment":     string(body[:i]) + string(body[i+1:]),
		"line break in it":     string(body[:i]) + `\n` + string(body[i+1:]),
		"bits behind the end":  string(body[:i+42]) + "B" + string(body[i+43:]),
		"an empty member":      string(audit.Committed(body)[:len(audit.Committed(body))-1]) + `,"private":{}}`,
		"two members":          strings.Replace(string(body), `,"private":`, `,"private":{"salt":"c2l4dGVlbiBieXRlcyA6KQ"},"private":`, 1),
		"something behind it":  strings.TrimSuffix(string(body), "}") + `,"gap":{"from":1,"to":1,"count":1}}`,
		"something more in it": strings.TrimSuffix(string(body), "}}") + `,"name":"x"}}`,
	} {
		if e, err := audit.Decode([]byte(bad)); !errors.Is(err, audit.ErrCanonical) || e != nil {
			t.Errorf("%s: %v, %v\n%s", name, e, err, bad)
		}
	}
}

func TestPrivateAllocatesNothing(t *testing.T) {
	e, body := ofPerson(t)
	buf := make([]byte, 0, 4096)
	for name, f := range map[string]func(){
		"encode": func() {
			if _, err := audit.Encode(buf, e); err != nil {
				t.Fatal(err)
			}
		},
		"hold": func() { e.Private.Hold("alice", "a") },
		"leaf": func() { audit.LeafHash(body) },
	} {
		if n := testing.AllocsPerRun(200, f); n != 0 {
			t.Errorf("%s: %v allocations, want 0", name, n)
		}
	}
}
