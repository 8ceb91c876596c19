// Package witness remembers how far the logs of others were seen to go. What was
// seen is pinned: a log that shows another past afterwards, be it by a restored
// backup or by somebody who holds its database and its key, is found out here.
//
// It refuses to believe: without a proof that the tree grew from the one that is
// pinned, nothing takes its place. It never lets go of a pin by itself.
package witness

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/audit/checkpoint"
	"github.com/parleymesh/parley/internal/audit/tiles"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/keys"
)

const (
	pinSuffix  = ".pin"  // the newest checkpoint that was seen, cosigned
	keySuffix  = ".vkey" // the key that it was seen under first
	forkSuffix = ".fork" // the first checkpoint that contradicts the pin

	// MaxProof is how many hashes a proof of consistency has at most.
	MaxProof = 128
)

// A Fork is a checkpoint that cannot be of the log whose earlier one is pinned. It
// is an error, and evidence: both are signed.
type Fork struct {
	Origin string
	// Pinned was seen before, Shown now.
	Pinned, Shown checkpoint.Checkpoint
	// Seen is when Pinned was.
	Seen time.Time
	// Why is what contradicts.
	Why string
}

// Error implements error.
func (f *Fork) Error() string {
	return fmt.Sprintf("the log %s is not the one that it was: %s (seen on %s with %d entries and root %x, shown now with %d and root %x)",
		f.Origin, f.Why, f.Seen.UTC().Format(time.RFC3339), f.Pinned.Size, f.Pinned.Root, f.Shown.Size, f.Shown.Root)
}

// A Witness keeps pins in a directory. It is safe for concurrent use.
type Witness struct {
	dir    string
	signer *checkpoint.Signer
	clock  clock.Clock

	mu   sync.Mutex      // guards pins, and the files
	pins map[string]*pin // by what the caller calls the log
}

type pin struct {
	key  *checkpoint.Verifier
	note *checkpoint.Note
	seen time.Time
	fork *Fork
}

// Open takes up the pins in dir, which is made with mode 0700 where it is absent.
// What was pinned is cosigned with signer. A file that is not what was written there
// is fault.LogBroken: a pin that is lost protects no longer, and whoever removes it
// is to know.
func Open(dir string, signer *checkpoint.Signer, clk clock.Clock) (*Witness, error) {
	w := &Witness{dir: dir, signer: signer, clock: clk, pins: map[string]*pin{}}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fault.Wrap(err, fault.LogUnusable, "ls -ld "+dir, "the pins of other logs in %s cannot be kept", dir)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fault.Wrap(err, fault.LogUnusable, "ls -ld "+dir, "the pins of other logs in %s cannot be read", dir)
	}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), pinSuffix)
		if !ok {
			continue
		}
		p, err := w.load(name)
		if err != nil {
			return nil, fault.Wrap(err, fault.LogBroken, "keep the file for inspection and move it away: the log is pinned anew then, as it is",
				"the pin %s is damaged", filepath.Join(dir, e.Name()))
		}
		w.pins[name] = p
	}
	return w, nil
}

// load reads the pin whose files are called name.
func (w *Witness) load(name string) (*pin, error) {
	text, err := readFile(filepath.Join(w.dir, name+keySuffix))
	if err != nil {
		return nil, err
	}
	p := new(pin)
	if p.key, err = checkpoint.ParseVerifier(string(text)); err != nil {
		return nil, err
	}
	if text, err = readFile(filepath.Join(w.dir, name+pinSuffix)); err != nil {
		return nil, err
	}
	if p.note, err = checkpoint.Open(text, p.key, w.signer.Witness()); err != nil {
		return nil, err
	}
	for _, c := range p.note.Cosignatures {
		p.seen = c.Time
	}
	text, err = readFile(filepath.Join(w.dir, name+forkSuffix))
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil
	}
	if err != nil {
		return nil, err
	}
	shown, err := checkpoint.Unverified(text)
	if err != nil {
		return nil, err
	}
	p.fork = p.contradicts(shown, "it was found before this start")
	return p, nil
}

// readFile is bounded: what we wrote is not longer.
func readFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err == nil && info.Size() > checkpoint.MaxNote {
		err = checkpoint.ErrTooLong
	}
	if err != nil {
		return nil, err
	}
	return os.ReadFile(path)
}

// Seen is the size at which the log that the caller calls name is pinned, 0 where it
// is not yet.
func (w *Witness) Seen(name string) uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	if p := w.pins[name]; p != nil {
		return p.note.Size
	}
	return 0
}

// Forks are the logs that were found to have another past, until somebody removes
// the files of that.
func (w *Witness) Forks() (all []*Fork) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range w.pins {
		if p.fork != nil {
			all = append(all, p.fork)
		}
	}
	return all
}

// Take looks at a checkpoint of the log that the caller calls name, which signs with
// key, and at the proof that its tree grew from the pinned one, in the order of RFC
// 6962 section 2.1.2. Where that holds it is pinned, durably, before Take returns
// what was cosigned of it. A log that is seen first is pinned as it is, with its
// origin and under that key. A name is one that audit.ValidLogName takes.
//
// A *Fork is evidence that the log is not the one that it was, and is kept; the pin
// stays. Any other error says nothing about the log: the note is malformed, or this
// host's disk fails.
func (w *Witness) Take(name string, data []byte, key *checkpoint.Verifier, proof []audit.Hash) (cosigned []byte, err error) {
	if !audit.ValidLogName(name) {
		return nil, fmt.Errorf("pin %q: %w", name, checkpoint.ErrName)
	}
	note, err := checkpoint.Open(data, key)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.pins[name]
	if p != nil {
		if why := p.consistent(note.Checkpoint, key, proof); why != "" {
			return nil, w.keepFork(name, p, data, p.contradicts(note.Checkpoint, why))
		}
	}
	now := w.clock.Now().UTC()
	if cosigned, err = w.signer.Cosign(note, now); err != nil {
		return nil, err
	}
	if p != nil && note.Size == p.note.Size {
		return cosigned, nil // nothing new, and so nothing to write
	}
	path := filepath.Join(w.dir, name)
	if p == nil {
		p = &pin{key: key}
		if err := keys.Write(path+keySuffix, []byte(key.String()+"\n")); err != nil {
			return nil, fmt.Errorf("pin %s: %w", note.Origin, err)
		}
	}
	if err := keys.Write(path+pinSuffix, cosigned); err != nil {
		return nil, fmt.Errorf("pin %s: %w", note.Origin, err)
	}
	p.note, p.seen = note, now
	w.pins[name] = p
	return cosigned, nil
}

// consistent is what speaks against c as a later state of the log, empty where
// nothing does.
func (p *pin) consistent(c checkpoint.Checkpoint, key *checkpoint.Verifier, proof []audit.Hash) string {
	old := p.note.Checkpoint
	switch {
	case c.Origin != old.Origin:
		return "it is another log, " + strconv.Quote(c.Origin)
	case key.String() != p.key.String():
		return "it is signed by another key"
	case c.Size < old.Size:
		return "it is shorter"
	case c.Size == old.Size && c.Root != old.Root:
		return "it has another root at the same length"
	case c.Size == old.Size || old.Size == 0:
		return ""
	case len(proof) > MaxProof:
		return "its proof is longer than any"
	}
	if tiles.CheckConsistency(proof, c.Size, c.Root, old.Size, old.Root) != nil {
		return "what it shows did not grow from that"
	}
	return ""
}

func (p *pin) contradicts(shown checkpoint.Checkpoint, why string) *Fork {
	return &Fork{Origin: p.note.Origin, Pinned: p.note.Checkpoint, Shown: shown, Seen: p.seen, Why: why}
}

// keepFork keeps the first contradiction.
func (w *Witness) keepFork(name string, p *pin, data []byte, f *Fork) error {
	if p.fork != nil {
		return f
	}
	p.fork = f
	if err := keys.Write(filepath.Join(w.dir, name+forkSuffix), data); err != nil {
		return errors.Join(f, fmt.Errorf("keep the evidence: %w", err))
	}
	return f
}
