package agent

import (
	"errors"
	"io/fs"
	"path/filepath"

	"github.com/parleymesh/parley/internal/audit/checkpoint"
)

// A Sealer keeps secrets in files that nobody else can read; keys.Master does.
type Sealer interface {
	Seal(path, purpose string, plaintext []byte) error
	// Open is fs.ErrNotExist where there is no file.
	Open(path, purpose string) ([]byte, error)
}

// The key of the agent's log, beside it, and what it is sealed as.
const (
	logKeyFile = "log.key"
	logKeySeal = "agent log key"
)

// logKey is the key of the agent's log, made when a log of that name is first opened.
// A log that was begun anew gets a key of its own.
func (cfg *Config) logKey(log string) (*checkpoint.Signer, error) {
	path, origin := filepath.Join(cfg.Dir, logKeyFile), checkpoint.Origin(cfg.TrustDomain.String(), log)
	text, err := cfg.Master.Open(path, logKeySeal)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err == nil {
		if key, err := checkpoint.ParseSigner(text); err != nil || key.Name() == origin {
			return key, err
		}
	}
	key, err := checkpoint.GenerateKey(origin)
	if err != nil {
		return nil, err
	}
	return key, cfg.Master.Seal(path, logKeySeal, key.Marshal())
}
