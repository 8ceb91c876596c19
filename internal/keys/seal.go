package keys

import (
	"bytes"

	"github.com/parleymesh/parley/internal/fault"
)

const (
	// magic begins every sealed file and names its format: the magic, a nonce of
	// 12 bytes, and the AES-256-GCM ciphertext with its tag. The magic and the
	// purpose are the additional data.
	magic = "parley-sealed-1\n"
	// maxPlaintext bounds what is sealed, in bytes.
	maxPlaintext = 64 << 20
)

// Seal writes plaintext to path, encrypted, mode 0600, in the place of what was
// there: after an error, and after a crash at any moment, path holds either the
// old content or the new. Only Open with the same purpose reads it, so that one
// sealed file cannot be passed off as another. At most 64 MiB.
func (m *Master) Seal(path, purpose string, plaintext []byte) error {
	if len(plaintext) > maxPlaintext {
		return fault.New(fault.Internal, "", "%d bytes are too many to seal into %s", len(plaintext), path)
	}
	sealed := m.aead.Seal([]byte(magic), nil, plaintext, additional(purpose))
	if err := Write(path, sealed); err != nil {
		return unwritable(err, path)
	}
	return nil
}

// Open reads what Seal wrote for purpose. A missing file is a KeyUnreadable
// fault that is fs.ErrNotExist too; one of another master key or purpose, or
// with a single changed bit, is KeyCorrupt.
func (m *Master) Open(path, purpose string) ([]byte, error) {
	f, err := openRegular(path)
	if err != nil {
		return nil, unreadable(err, path)
	}
	defer f.Close()
	data, err := readAtMost(f, len(magic)+maxPlaintext+m.aead.Overhead())
	if err != nil {
		return nil, unreadable(err, path)
	}
	sealed, ok := bytes.CutPrefix(data, []byte(magic))
	if !ok {
		return nil, corrupt(path)
	}
	plaintext, err := m.aead.Open(nil, nil, sealed, additional(purpose))
	if err != nil {
		return nil, corrupt(path)
	}
	return plaintext, nil
}

func additional(purpose string) []byte { return []byte(magic + purpose) }

func corrupt(path string) error {
	return fault.New(fault.KeyCorrupt, "restore "+quote(path)+" and the master key from the same backup",
		"%s does not open with this master key: it is damaged, or was sealed under another key", path)
}
