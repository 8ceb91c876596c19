package control_test

import (
	"crypto/sha256"
	"encoding/hex"
	"testing"

	"github.com/parleymesh/parley/internal/control"
	"github.com/parleymesh/parley/internal/fault"
)

func TestRevisionIntact(t *testing.T) {
	t.Parallel()
	text := []byte("allow: [{from: [web]}]\n")
	sum := sha256.Sum256(text)
	digest := hex.EncodeToString(sum[:])
	if err := (&control.Revision{Number: 3, Text: text, Digest: digest}).Intact(); err != nil {
		t.Error(err)
	}
	flipped := append([]byte(nil), text...)
	flipped[9] ^= 4
	for name, r := range map[string]*control.Revision{
		"text":      {Number: 3, Text: flipped, Digest: digest},
		"digest":    {Number: 3, Text: text, Digest: "0" + digest[1:]},
		"no text":   {Number: 3, Digest: digest},
		"no digest": {Number: 3, Text: text},
	} {
		all := fault.All(r.Intact())
		if len(all) != 1 || all[0].Code != fault.StoreCorrupt || all[0].Hint == "" {
			t.Errorf("%s: %v", name, all)
		}
	}
}
