package mtls

import (
	"testing"
	"time"
)

func TestBinding(t *testing.T) {
	t.Parallel()
	b := binding{epoch: 7, notAfter: time.Unix(1_800_000_000, 0), own: [ownSize]byte{1, 2, 15: 3}}
	if got, ok := findBinding([][]byte{[]byte("other"), b.encode()}); !ok || got != b {
		t.Errorf("got %v %v", got, ok)
	}
	for name, extra := range map[string][][]byte{
		"none":  {[]byte("other")},
		"two":   {b.encode(), b.encode()},
		"short": {b.encode()[:len(ticketMark)+bindingSize-1]},
		"long":  {append(b.encode(), 0)},
	} {
		if _, ok := findBinding(extra); ok {
			t.Errorf("%s: accepted", name)
		}
	}
	if kept := dropBindings([][]byte{b.encode(), []byte("other")}); len(kept) != 1 || string(kept[0]) != "other" {
		t.Errorf("kept %q", kept)
	}
}

func FuzzBinding(f *testing.F) {
	f.Add(binding{epoch: 1, notAfter: time.Unix(0, 0), own: [ownSize]byte{9}}.encode())
	f.Add([]byte(ticketMark))
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, entry []byte) {
		b, ok := decodeBinding(entry)
		if ok && string(b.encode()) != string(entry) {
			t.Fatalf("%x decodes to %+v", entry, b)
		}
	})
}
