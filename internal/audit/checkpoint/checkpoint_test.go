package checkpoint_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/audit/checkpoint"
	"golang.org/x/mod/sumdb/note"
)

const origin = "shop.example/vm-server-3c02f39c"

var (
	seed = bytes.Repeat([]byte{7}, ed25519.SeedSize)
	root = audit.Hash(sha256.Sum256([]byte("root")))
)

// keyID is the formula of C2SP signed-note.
func keyID(name string, alg byte, public []byte) []byte {
	sum := sha256.Sum256([]byte(name + "\n" + string(alg) + string(public)))
	return sum[:4]
}

// secret is a private key as golang.org/x/mod/sumdb/note writes it, by hand.
func secret(name string, seed []byte) string {
	public := ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey)
	return fmt.Sprintf("PRIVATE+KEY+%s+%x+%s", name, keyID(name, 1, public), base64.StdEncoding.EncodeToString(append([]byte{1}, seed...)))
}

func signer(t testing.TB, name string, seed []byte) *checkpoint.Signer {
	t.Helper()
	s, err := checkpoint.ParseSigner([]byte(secret(name, seed)))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// byHand is the note that the specification asks for.
func byHand(body string, key ed25519.PrivateKey) string {
	raw := append(keyID(origin, 1, key.Public().(ed25519.PublicKey)), ed25519.Sign(key, []byte(body))...)
	return body + "\n— " + origin + " " + base64.StdEncoding.EncodeToString(raw) + "\n"
}

func body(size any) string {
	return fmt.Sprintf("%s\n%v\n%s\n", origin, size, base64.StdEncoding.EncodeToString(root[:]))
}

func TestSignIsTheSpecified(t *testing.T) {
	t.Parallel()
	s := signer(t, origin, seed)
	want := "before" + byHand(body(20852163), ed25519.NewKeyFromSeed(seed))
	if got := s.Sign([]byte("before"), 20852163, root); string(got) != want {
		t.Errorf("Sign:\n%s\nwant\n%s", got, want)
	}
}

func TestOpen(t *testing.T) {
	t.Parallel()
	s, err := checkpoint.GenerateKey(origin)
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []uint64{0, 1, 4711, checkpoint.MaxSize} {
		signed := s.Sign(nil, size, root)
		n, err := checkpoint.Open(signed, s.Verifier())
		if err != nil {
			t.Fatal(err)
		}
		if want := (checkpoint.Checkpoint{Origin: origin, Size: size, Root: root}); n.Checkpoint != want {
			t.Errorf("Open = %+v, want %+v", n.Checkpoint, want)
		}
		if c, err := checkpoint.Unverified(signed); err != nil || c != n.Checkpoint {
			t.Errorf("Unverified = %+v, %v", c, err)
		}
	}
}

// What golang.org/x/mod/sumdb/note signs we open, and the other way round.
func TestNotesOfOthers(t *testing.T) {
	t.Parallel()
	secret, public, err := note.GenerateKey(nil, origin)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := note.NewSigner(secret)
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := note.NewVerifier(public)
	if err != nil {
		t.Fatal(err)
	}
	ours, err := checkpoint.ParseSigner([]byte(secret))
	if err != nil {
		t.Fatal(err)
	}
	if got := ours.Verifier().String(); got != public {
		t.Errorf("the public key is %s, theirs %s", got, public)
	}
	known, err := checkpoint.ParseVerifier(public + "\n")
	if err != nil {
		t.Fatal(err)
	}
	signed, err := note.Sign(&note.Note{Text: body(12)}, theirs)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := checkpoint.Open(signed, known); err != nil || n.Size != 12 {
		t.Errorf("Open of theirs: %v", err)
	}
	if n, err := note.Open(ours.Sign(nil, 12, root), note.VerifierList(verifier)); err != nil || n.Text != body(12) {
		t.Errorf("their Open of ours: %v", err)
	}
	if !bytes.Equal(ours.Sign(nil, 12, root), signed) {
		t.Error("the same key signs otherwise")
	}
}

// The example of C2SP tlog-checkpoint reads as what it says.
func TestTheExampleOfTheSpecification(t *testing.T) {
	t.Parallel()
	const example = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n" +
		"— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
	c, err := checkpoint.Unverified([]byte(example))
	if err != nil {
		t.Fatal(err)
	}
	if got := string(c.AppendText(nil)); !strings.HasPrefix(example, got+"\n— ") {
		t.Errorf("its text is %q", got)
	}
	if _, err := checkpoint.Open([]byte(example)); !errors.Is(err, checkpoint.ErrUnsigned) {
		t.Errorf("Open without keys: %v", err)
	}
}

func TestOpenIsStrict(t *testing.T) {
	t.Parallel()
	key := ed25519.NewKeyFromSeed(seed)
	good := byHand(body(4711), key)
	text := base64.StdEncoding.EncodeToString(root[:])
	tests := map[string]struct {
		note string
		want error
	}{
		"empty":                    {"", checkpoint.ErrMalformed},
		"no signature":             {body(4711), checkpoint.ErrMalformed},
		"cut short":                {good[:len(good)-1], checkpoint.ErrMalformed},
		"something behind":         {good + "\n", checkpoint.ErrMalformed},
		"carriage returns":         {strings.ReplaceAll(good, "\n", "\r\n"), checkpoint.ErrMalformed},
		"leading zero":             {byHand(body("04711"), key), checkpoint.ErrMalformed},
		"zero twice":               {byHand(body("00"), key), checkpoint.ErrMalformed},
		"plus":                     {byHand(body("+1"), key), checkpoint.ErrMalformed},
		"negative":                 {byHand(body("-1"), key), checkpoint.ErrMalformed},
		"no size":                  {byHand(body(""), key), checkpoint.ErrMalformed},
		"more than a tree can be":  {byHand(body(uint64(checkpoint.MaxSize+1)), key), checkpoint.ErrMalformed},
		"more than a number":       {byHand(body("18446744073709551616"), key), checkpoint.ErrMalformed},
		"an extension":             {byHand(body(1)+"extension\n", key), checkpoint.ErrMalformed},
		"two roots":                {byHand(body(1)+text+"\n", key), checkpoint.ErrMalformed},
		"no root":                  {byHand(origin+"\n1\n", key), checkpoint.ErrMalformed},
		"short root":               {byHand(origin+"\n1\nAAAA\n", key), checkpoint.ErrMalformed},
		"root without padding":     {byHand(origin+"\n1\n"+strings.TrimRight(text, "=")+"\n", key), checkpoint.ErrMalformed},
		"bits behind the root":     {byHand(origin+"\n1\n"+text[:42]+string(text[42]+1)+"=\n", key), checkpoint.ErrMalformed},
		"no origin":                {byHand("\n1\n"+text+"\n", key), checkpoint.ErrMalformed},
		"origin with a space":      {byHand("shop example\n1\n"+text+"\n", key), checkpoint.ErrMalformed},
		"origin too long":          {byHand(strings.Repeat("x", 256)+"\n1\n"+text+"\n", key), checkpoint.ErrMalformed},
		"bits behind a signature":  {good[:len(good)-3] + string(good[len(good)-3]+1) + "=\n", checkpoint.ErrMalformed},
		"too long":                 {good + strings.Repeat("— a AAAAAAA=\n", checkpoint.MaxNote/12), checkpoint.ErrTooLong},
		"another log's checkpoint": {byHand("shop.example/other\n1\n"+text+"\n", key), checkpoint.ErrOrigin},
		"another key":              {byHand(body(1), ed25519.NewKeyFromSeed(bytes.Repeat([]byte{8}, 32))), checkpoint.ErrUnsigned},
		"another size":             {strings.Replace(good, "4711", "4712", 1), checkpoint.ErrSignature},
		"another root":             {strings.Replace(good, "\n"+text[:4], "\nAAAA", 1), checkpoint.ErrSignature},
	}
	v := signer(t, origin, seed).Verifier()
	if _, err := checkpoint.Open([]byte(good), v); err != nil {
		t.Fatalf("the good one: %v", err)
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if n, err := checkpoint.Open([]byte(tt.note), v); !errors.Is(err, tt.want) || n != nil {
				t.Errorf("Open = %v, %v; want %v", n, err, tt.want)
			}
		})
	}
}

// No bit of a note can be flipped unseen.
func TestOpenSeesEveryBit(t *testing.T) {
	t.Parallel()
	s := signer(t, origin, seed)
	good := s.Sign(nil, 4711, root)
	for i := range good {
		for bit := range 8 {
			bad := bytes.Clone(good)
			bad[i] ^= 1 << bit
			if n, err := checkpoint.Open(bad, s.Verifier()); err == nil {
				t.Fatalf("byte %d, bit %d: it opens as %+v:\n%s", i, bit, n.Checkpoint, bad)
			}
		}
	}
}

func TestCosign(t *testing.T) {
	t.Parallel()
	log, witness := signer(t, origin, seed), signer(t, "shop.example/witness", bytes.Repeat([]byte{9}, 32))
	at := time.Date(2026, 11, 23, 19, 5, 7, 0, time.UTC)
	n, err := checkpoint.Open(log.Sign(nil, 12, root), log.Verifier())
	if err != nil || len(n.Cosignatures) != 0 {
		t.Fatal(n, err)
	}
	signed, err := witness.Cosign(n, at)
	if err != nil {
		t.Fatal(err)
	}

	// The last line is that of C2SP tlog-cosignature, made by hand.
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{9}, 32))
	raw := binary.BigEndian.AppendUint64(keyID("shop.example/witness", 4, key.Public().(ed25519.PublicKey)), uint64(at.Unix()))
	raw = append(raw, ed25519.Sign(key, []byte("cosignature/v1\ntime 1795460707\n"+body(12)))...)
	want := string(log.Sign(nil, 12, root)) + "— shop.example/witness " + base64.StdEncoding.EncodeToString(raw) + "\n"
	if string(signed) != want {
		t.Errorf("Cosign:\n%s\nwant\n%s", signed, want)
	}

	vkey, err := checkpoint.ParseVerifier(witness.Witness().String())
	if err != nil || !vkey.Witness() || log.Verifier().Witness() {
		t.Fatalf("the witness's key: %v, %v", vkey, err)
	}
	n, err = checkpoint.Open(signed, log.Verifier(), vkey)
	if err != nil {
		t.Fatal(err)
	}
	if len(n.Cosignatures) != 1 || n.Cosignatures[0] != (checkpoint.Cosignature{Witness: "shop.example/witness", Time: at}) {
		t.Errorf("cosignatures %v", n.Cosignatures)
	}
	// Later again: in place of the first.
	again, err := witness.Cosign(n, at.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	n, err = checkpoint.Open(again, vkey, log.Verifier())
	if err != nil || len(n.Cosignatures) != 1 || !n.Cosignatures[0].Time.Equal(at.Add(time.Hour)) {
		t.Errorf("after another cosignature: %v, %v", n, err)
	}
	// A cosignature alone is no signature of the log, nor is one of the log's own key.
	for name, known := range map[string][]*checkpoint.Verifier{"witness": {vkey}, "the log's own": {log.Witness()}, "none": nil} {
		own, err := log.Cosign(n, at)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := checkpoint.Open(own, known...); !errors.Is(err, checkpoint.ErrUnsigned) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := witness.Cosign(n, time.Unix(-1, 0)); err == nil {
		t.Error("it cosigned before 1970")
	}
}

func TestCosignaturesThatAreWrong(t *testing.T) {
	t.Parallel()
	log, witness := signer(t, origin, seed), signer(t, "witness", bytes.Repeat([]byte{9}, 32))
	n, err := checkpoint.Open(log.Sign(nil, 12, root), log.Verifier())
	if err != nil {
		t.Fatal(err)
	}
	good, err := witness.Cosign(n, time.Unix(1795460707, 0))
	if err != nil {
		t.Fatal(err)
	}
	start := bytes.LastIndexByte(good, ' ') + 1
	for i := start + 6; i < len(good)-1; i++ { // behind the key id
		bad := bytes.Clone(good)
		bad[i] ^= 1
		if n, err := checkpoint.Open(bad, log.Verifier(), witness.Witness()); err == nil {
			t.Fatalf("byte %d: it opens with %v", i, n.Cosignatures)
		}
		if _, err := checkpoint.Open(bad[:start], log.Verifier(), witness.Witness()); !errors.Is(err, checkpoint.ErrMalformed) {
			t.Fatalf("cut at the signature: %v", err)
		}
	}
	// A time beyond 2^63-1 is refused before anything is computed with it.
	raw, err := base64.StdEncoding.DecodeString(string(good[start : len(good)-1]))
	if err != nil {
		t.Fatal(err)
	}
	raw[4] |= 0x80
	bad := base64.StdEncoding.AppendEncode(bytes.Clone(good[:start]), raw)
	if _, err := checkpoint.Open(append(bad, '\n'), log.Verifier(), witness.Witness()); !errors.Is(err, checkpoint.ErrSignature) {
		t.Errorf("a time beyond time: %v", err)
	}
}

func TestKeys(t *testing.T) {
	t.Parallel()
	for range 200 { // some have a plus in their base64
		s, err := checkpoint.GenerateKey(origin)
		if err != nil {
			t.Fatal(err)
		}
		again, err := checkpoint.ParseSigner(s.Marshal())
		if err != nil {
			t.Fatalf("%s: %v", s.Marshal(), err)
		}
		if again.Name() != origin || !bytes.Equal(again.Sign(nil, 1, root), s.Sign(nil, 1, root)) {
			t.Fatal("another key came back")
		}
		for _, v := range []*checkpoint.Verifier{s.Verifier(), s.Witness()} {
			if back, err := checkpoint.ParseVerifier(v.String()); err != nil || back.String() != v.String() {
				t.Fatalf("%s: %v, %v", v, back, err)
			}
		}
	}
	for _, name := range []string{"", "a b", "a+b", "a\x00", "a\u2028b", "\xff", "a\u009b", strings.Repeat("x", 256)} {
		if _, err := checkpoint.GenerateKey(name); !errors.Is(err, checkpoint.ErrName) {
			t.Errorf("a key for %q: %v", name, err)
		}
	}
	good := secret(origin, seed)
	for name, text := range map[string]string{
		"empty": "", "cut": good[:len(good)-4], "of another name": strings.Replace(good, origin, "x", 1), "public": signer(t, origin, seed).Verifier().String(),
		"with a line end": good + "\n", "another kind": strings.Replace(good, "+AQ", "+Ag", 1), "no name": strings.Replace(good, origin, "", 1),
	} {
		if _, err := checkpoint.ParseSigner([]byte(text)); err == nil {
			t.Errorf("a private key that is %s was read", name)
		} else if strings.Contains(err.Error(), good[len(good)-40:]) {
			t.Errorf("%s: the error tells the key: %v", name, err)
		}
	}
	public := signer(t, origin, seed).Verifier().String()
	for name, text := range map[string]string{
		"empty": "", "cut": public[:len(public)-4], "of another name": strings.Replace(public, origin, "x", 1), "with no name": strings.Replace(public, origin, "", 1),
		"another kind": strings.Replace(public, "+Ae", "+Ag", 1), "with capitals": strings.ToUpper(public), "long": public + strings.Repeat("A", 2000), "two": public + "\n" + public,
	} {
		if v, err := checkpoint.ParseVerifier(text); !errors.Is(err, checkpoint.ErrKey) {
			t.Errorf("a public key that is %s was read: %v, %v", name, v, err)
		}
	}
}

// A key that somebody prints by mistake tells its name alone.
func TestASignerDoesNotTellItsKey(t *testing.T) {
	t.Parallel()
	s := signer(t, origin, seed)
	for _, format := range []string{"%v", "%+v", "%s", "%#v", "%d", "%x"} {
		if got := fmt.Sprintf(format, s); got != "the key of "+origin {
			t.Errorf("%s: %s", format, got)
		}
	}
}

func TestOrigin(t *testing.T) {
	t.Parallel()
	if got := checkpoint.Origin("shop.example", "vm-server-3c02f39c"); got != origin {
		t.Errorf("Origin = %s", got)
	}
}

func TestSignAllocations(t *testing.T) {
	s := signer(t, origin, seed)
	buf := make([]byte, 0, 1024)
	if n := testing.AllocsPerRun(100, func() { buf = s.Sign(buf[:0], 123456789, root) }); n > 0 {
		t.Errorf("%.0f allocations", n)
	}
}

func FuzzOpen(f *testing.F) {
	s := signer(f, origin, seed)
	n, err := checkpoint.Open(s.Sign(nil, 12, root), s.Verifier())
	if err != nil {
		f.Fatal(err)
	}
	cosigned, err := s.Cosign(n, time.Unix(1795460707, 0))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(cosigned)
	f.Add(s.Sign(nil, 0, root))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := checkpoint.Unverified(data)
		n, openErr := checkpoint.Open(data, s.Verifier(), s.Witness())
		if openErr != nil {
			return
		}
		if err != nil || n.Checkpoint != c {
			t.Fatalf("Open has %+v, Unverified %+v, %v", n.Checkpoint, c, err)
		}
		// Nobody but the key signs: what opens begins with what it signed.
		if want := s.Sign(nil, c.Size, c.Root); !bytes.HasPrefix(data, want[:bytes.Index(want, []byte("\n\n"))]) {
			t.Fatalf("it opens and is not signed:\n%s", data)
		}
	})
}

func FuzzParseVerifier(f *testing.F) {
	s := signer(f, origin, seed)
	f.Add(s.Verifier().String())
	f.Add(s.Witness().String())
	f.Fuzz(func(t *testing.T, text string) {
		v, err := checkpoint.ParseVerifier(text)
		if err == nil && v.String() != strings.TrimSpace(text) {
			t.Fatalf("%q reads as %q", text, v)
		}
	})
}

func BenchmarkSign(b *testing.B) {
	s := signer(b, origin, seed)
	buf := make([]byte, 0, 1024)
	b.ReportAllocs()
	for b.Loop() {
		buf = s.Sign(buf[:0], 123456789, root)
	}
}
