package tiles

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/audit/checkpoint"
)

const (
	// MaxProof is the longest proof file, in bytes.
	MaxProof = 256 << 10

	proofHeader = "c2sp.org/tlog-proof@v1"
	maxHashes   = 64
)

// ErrProofFile says that something is not a proof file.
var ErrProofFile = errors.New("not a proof of one event")

// A ProofFile shows to whoever knows the log's key that one event is in the log: a
// C2SP tlog-proof with the event as its extra data.
type ProofFile struct {
	// Event is the entry: the committed bytes of the event.
	Event []byte
	// Index is the entry's.
	Index uint64
	// Hashes are its Inclusion in the tree of the checkpoint.
	Hashes []audit.Hash
	// Checkpoint is signed, as checkpoint.Signer.Sign makes it.
	Checkpoint []byte
}

// AppendText appends the file, in which no private part of the event is.
func (p *ProofFile) AppendText(dst []byte) []byte {
	dst = append(dst, proofHeader+"\n"...)
	if event := audit.Committed(p.Event); len(event) > 0 {
		dst = append(dst, "extra "...)
		dst = base64.StdEncoding.AppendEncode(dst, event)
		dst = append(dst, '\n')
	}
	dst = append(dst, "index "...)
	dst = strconv.AppendUint(dst, p.Index, 10)
	dst = append(dst, '\n')
	for _, h := range p.Hashes {
		dst = base64.StdEncoding.AppendEncode(dst, h[:])
		dst = append(dst, '\n')
	}
	dst = append(dst, '\n')
	return append(dst, p.Checkpoint...)
}

// ParseProofFile reads what AppendText wrote and nothing else; the checkpoint is
// only taken over, and nothing verified.
func ParseProofFile(data []byte) (*ProofFile, error) {
	if len(data) > MaxProof {
		return nil, fmt.Errorf("%w: it has %d bytes, at most %d", ErrProofFile, len(data), MaxProof)
	}
	head, signed, found := strings.Cut(string(data), "\n\n")
	if !found {
		return nil, fmt.Errorf("%w: no empty line stands before the checkpoint", ErrProofFile)
	}
	lines := strings.Split(head, "\n")
	if lines[0] != proofHeader {
		return nil, fmt.Errorf("%w: line 1 is not %s", ErrProofFile, proofHeader)
	}
	p := &ProofFile{Checkpoint: []byte(signed)}
	at := 1 // of lines
	if at < len(lines) && strings.HasPrefix(lines[at], "extra ") {
		event, err := decode(lines[at][len("extra "):])
		if err != nil || len(event) == 0 || len(event) > audit.MaxEvent {
			return nil, fmt.Errorf("%w: line %d: the extra data are not an event of at most %d bytes in base64", ErrProofFile, at+1, audit.MaxEvent)
		}
		p.Event, at = event, at+1
	}
	if at >= len(lines) || !strings.HasPrefix(lines[at], "index ") {
		return nil, fmt.Errorf("%w: line %d does not begin with the word index", ErrProofFile, at+1)
	}
	number := lines[at][len("index "):]
	index, err := strconv.ParseUint(number, 10, 64)
	if err != nil || index >= checkpoint.MaxSize || strconv.FormatUint(index, 10) != number {
		return nil, fmt.Errorf("%w: line %d: %q is not the index of an entry", ErrProofFile, at+1, number)
	}
	p.Index, at = index, at+1
	if len(lines)-at > maxHashes {
		return nil, fmt.Errorf("%w: %d hashes, more than a tree is high", ErrProofFile, len(lines)-at)
	}
	for ; at < len(lines); at++ {
		h, err := decode(lines[at])
		if err != nil || len(h) != hashSize {
			return nil, fmt.Errorf("%w: line %d is not a hash in base64", ErrProofFile, at+1)
		}
		p.Hashes = append(p.Hashes, audit.Hash(h))
	}
	if !bytes.Equal(p.AppendText(make([]byte, 0, len(data))), data) {
		return nil, fmt.Errorf("%w: it is not written as such files are", ErrProofFile)
	}
	return p, nil
}

// decode takes the one encoding of some bytes; line ends, which the standard
// library leaves out, do not come here but as carriage returns, which AppendText
// then does not write.
func decode(s string) ([]byte, error) { return base64.StdEncoding.Strict().DecodeString(s) }
