package spool_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/audit/checkpoint"
	"github.com/parleymesh/parley/internal/audit/spool"
)

// keyring makes a key for each log once.
type keyring map[string]*checkpoint.Signer

func (k keyring) key(log string) (*checkpoint.Signer, error) {
	if k[log] == nil {
		key, err := checkpoint.GenerateKey(checkpoint.Origin("shop.example", log))
		if err != nil {
			return nil, err
		}
		k[log] = key
	}
	return k[log], nil
}

func openSigned(t testing.TB, dir string, keys keyring) *spool.Spool {
	t.Helper()
	cfg := config(dir)
	cfg.Key = keys.key
	s, err := spool.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// signedFor holds the newest checkpoint to the entries that can be read.
func signedFor(t testing.TB, s *spool.Spool, n uint64) {
	t.Helper()
	var tree audit.Tree
	for _, e := range all(t, s, 0) {
		tree.Append(e.Leaf)
	}
	size, text := s.Checkpoint()
	note, err := checkpoint.Open(text, s.Key())
	if err != nil {
		t.Fatal(err)
	}
	if size != n || note.Size != n || note.Root != tree.Root() || note.Origin != "shop.example/"+s.Log() {
		t.Errorf("signed is %+v (%d), want %d entries of %s with root %x", note.Checkpoint, size, n, s.Log(), tree.Root())
	}
}

func TestWhatIsSealedIsSigned(t *testing.T) {
	t.Parallel()
	dir, keys := t.TempDir(), keyring{}
	s := openSigned(t, dir, keys)
	if size, note := s.Checkpoint(); size != 0 || note != nil {
		t.Errorf("an empty log is signed: %d, %q", size, note)
	}
	stop := run(t, s)
	record(t, s, 0, 1500) // several segments
	all(t, s, 0)
	stop()
	signedFor(t, s, 1500)
	report, err := s.Verify()
	if r := verified(t, report, err); r.Signed != 1500 || r.Root == (audit.Hash{}) {
		t.Errorf("report %+v", r)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openSigned(t, dir, keys)
	signedFor(t, s, 1500)
	run(t, s)
	record(t, s, 1500, 10)
	all(t, s, 0)
	if err := s.Discard(1400); err != nil {
		t.Fatal(err)
	}
	report, err = s.Verify()
	if r := verified(t, report, err); r.First == 0 || r.Root == (audit.Hash{}) {
		t.Errorf("the root is not known after entries were discarded: %+v", r)
	}
}

// A process that is killed has signed what it sealed, and the next one signs on.
func TestAKilledLogIsHeldToItsCheckpoint(t *testing.T) {
	t.Parallel()
	dir, keys := t.TempDir(), keyring{}
	s := openSigned(t, dir, keys)
	run(t, s)
	record(t, s, 0, 900)
	all(t, s, 0)
	record(t, s, 900, 5) // sealed or not
	s = openSigned(t, killed(t, dir), keys)
	want(t, s, series(0, 905))
	signedFor(t, s, 905)
	report, err := s.Verify()
	verified(t, report, err)
}

// reseal makes record i of a segment consistent again, as somebody would who knows the
// format and not the key.
func reseal(d []byte, i int, edit func(body []byte)) []byte {
	off := offsets(d, i+1)[i]
	w := binary.NativeEndian.Uint64(d[off:])
	body := d[off+spool.RecordHead:][:w>>32&0xffff]
	edit(body)
	text, err := audit.Render(nil, body)
	if err != nil {
		panic(err)
	}
	leaf := audit.LeafHash(text)
	copy(d[off+spool.OffLeaf:], leaf[:])
	table := crc32.MakeTable(crc32.Castagnoli)
	sum := crc32.Update(crc32.Checksum(body, table), table, d[off+8:off+16])
	binary.NativeEndian.PutUint64(d[off:], w&^0xffffffff|uint64(sum))
	return d
}

// Another log than the one that was signed is found and named, whether it is verified
// or started, and goes on from what was signed.
func TestAnotherLogThanTheSignedIsNamed(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		edit func(d []byte) []byte
		want string
	}{
		"an entry changed": {func(d []byte) []byte {
			return reseal(d, 4, func(body []byte) { copy(body[bytes.Index(body, []byte("/orders/7")):], "/orders/8") })
		}, "are not those that the checkpoint was signed for"},
		"shorter, with its count": {func(d []byte) []byte {
			at := offsets(d, 9)
			clear(d[at[6]:at[9]])
			word := uint64(6) | uint64(crc32.Checksum(binary.NativeEndian.AppendUint32(nil, 6), crc32.MakeTable(crc32.Castagnoli)))<<32
			binary.NativeEndian.PutUint64(d[spool.OffSealed:], word)
			return d
		}, "entries 6 to 8: each is missing"},
		"a checkpoint of another key": {func(d []byte) []byte {
			other, err := checkpoint.GenerateKey("shop.example/other")
			if err != nil {
				panic(err)
			}
			return spool.WriteCheckpoint(d, other.Sign)
		}, "its checkpoint of 9 entries"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, keys := t.TempDir(), keyring{}
			s := openSigned(t, dir, keys)
			record(t, s, 0, 9)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			report, err := spool.Verify(dir)
			if r := verified(t, report, err); r.Signed != 9 {
				t.Fatalf("%d entries are signed", r.Signed)
			}
			_, before := s.Checkpoint()
			change(t, dir, tt.edit)
			s = openSigned(t, dir, keys)
			said := fmt.Sprint(s.Repaired())
			for _, e := range all(t, s, 0) {
				said += string(e.Body)
			}
			if !strings.Contains(said, tt.want) || !strings.Contains(said, "log_damaged") {
				t.Errorf("it says %s\nwant %s", said, tt.want)
			}
			run(t, s)
			record(t, s, 9, 3)
			all(t, s, 0)
			if _, note := s.Checkpoint(); bytes.Equal(note, before) {
				t.Error("nothing is signed any more")
			}
		})
	}
}

// Without its key a log that is to be signed is not opened; one without a key is not signed.
func TestNoCheckpointWithoutAKey(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cfg := config(dir)
	cfg.Key = func(string) (*checkpoint.Signer, error) { return nil, os.ErrPermission }
	if _, err := spool.Open(cfg); err == nil || !strings.Contains(err.Error(), "the key of the audit log") {
		t.Errorf("Open: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "lock")); err != nil {
		t.Error(err)
	}
	s := open(t, dir)
	record(t, s, 0, 1)
	if s.Key() != nil {
		t.Error("there is a key")
	}
}

func FuzzStand(f *testing.F) {
	dir, keys := f.TempDir(), keyring{}
	s := openSigned(f, dir, keys)
	record(f, s, 0, 5)
	if err := s.Close(); err != nil {
		f.Fatal(err)
	}
	d, err := os.ReadFile(filepath.Join(dir, firstSegment))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(d[spool.OffNotes : spool.OffNotes+4096])
	f.Add(make([]byte, 4096))
	f.Fuzz(func(t *testing.T, data []byte) {
		page := make([]byte, 4096)
		copy(page, data)
		if size, ok := spool.ReadStand(page); ok && size == 0 {
			t.Error("a checkpoint of nothing")
		}
	})
}

// A loss of power keeps some pages of what was not synced and not others. What was lost
// there was never signed nor collected, and so nothing keeps the log from being signed
// on, now and after any later start.
func TestALogIsSignedOnAfterALossOfPower(t *testing.T) {
	t.Parallel()
	dir, keys := t.TempDir(), keyring{}
	s := openSigned(t, dir, keys)
	record(t, s, 0, 5)
	if err := spool.Seal(s); err != nil {
		t.Fatal(err)
	}
	record(t, s, 5, 4)
	dir = killed(t, dir)
	change(t, dir, func(d []byte) []byte {
		at := offsets(d, 9)
		clear(d[at[6]:at[7]])
		d[spool.OffBoot]++
		return d
	})
	for next := uint64(10); next < 14; next += 2 { // with the event of the loss of power
		s = openSigned(t, dir, keys)
		record(t, s, int(next), 1)
		if err := spool.Seal(s); err != nil {
			t.Fatal(err)
		}
		signedFor(t, s, next+1)
		report, err := s.Verify()
		verified(t, report, err)
		record(t, s, int(next)+1, 1)
		dir = killed(t, dir)
	}
}
