// Command parley-audit-verify says whether an export of an audit log, or the proof
// of one event, is what its log signed. It is built from the standard library, the
// hashes and notes of golang.org/x/mod/sumdb and the rooms of the audit log alone,
// and needs neither Parley nor a network: it can run far from what wrote the log.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"syscall"

	"github.com/parleymesh/parley/internal/audit/checkpoint"
	"github.com/parleymesh/parley/internal/audit/offline"
	"github.com/parleymesh/parley/internal/audit/tiles"
	"github.com/parleymesh/parley/internal/visible"
)

const usage = `usage: parley-audit-verify --key KEY [--key KEY] [--pin FILE]... [--json] EXPORT | PROOF

Says whether an export of an audit log (a directory) or the proof of one event (a
file) is what the log has signed. Needs no network and nothing of Parley.

  --key KEY   the public key of the log, as text or in a file; again, that of each
              witness that must have cosigned. Get it from somewhere else than the export.
  --pin FILE  a checkpoint of the log that somebody kept: an agent, a witness, you,
              yesterday. Again for each. What is verified must begin with it.
  --json      one JSON document in place of text

Exit codes: 0 intact, 1 not intact, 2 wrong usage, or it could not be read.

  parley-audit-verify --key log.vkey --pin yesterday.checkpoint export/
`

const (
	exitIntact = iota
	exitNotIntact
	exitUsage
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run is the program without its process: arguments and streams in, exit code out.
func run(args []string, out, errs io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	flags := flag.NewFlagSet("parley-audit-verify", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	var keys, pins []string
	flags.Func("key", "", func(s string) error { keys = append(keys, s); return nil })
	flags.Func("pin", "", func(s string) error { pins = append(pins, s); return nil })
	asJSON := flags.Bool("json", false, "")
	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(out, usage)
		return exitIntact
	case err == nil && flags.NArg() != 1:
		err = fmt.Errorf("one export or proof is to be named, not %d", flags.NArg())
	}
	if err != nil {
		return complain(errs, err, "parley-audit-verify --help")
	}
	report, err := verify(ctx, flags.Arg(0), keys, pins)
	if err != nil {
		return complain(errs, err, hint(err))
	}
	if *asJSON {
		document, err := json.MarshalIndent(report, "", "  ")
		if err != nil {
			return complain(errs, err, "")
		}
		fmt.Fprintln(out, string(visible.JSON(document)))
	} else {
		fmt.Fprint(out, report.Text())
	}
	if !report.Intact {
		return exitNotIntact
	}
	return exitIntact
}

func verify(ctx context.Context, path string, keys, pins []string) (*offline.Report, error) {
	var given offline.Given
	for _, key := range keys {
		all, err := readKeys(key)
		if err != nil {
			return nil, err
		}
		given.Keys = append(given.Keys, all...)
	}
	for _, pin := range pins {
		note, err := read(pin, checkpoint.MaxNote)
		if err != nil {
			return nil, err
		}
		given.Pins = append(given.Pins, offline.Pin{Name: pin, Note: note})
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return offline.Export(ctx, path, given)
	}
	proof, err := read(path, tiles.MaxProof)
	if err != nil {
		return nil, err
	}
	return offline.Proof(proof, path, given)
}

// readKeys takes a public key, or else the name of a file of them.
func readKeys(key string) ([]*checkpoint.Verifier, error) {
	v, keyErr := checkpoint.ParseVerifier(key)
	if keyErr == nil {
		return []*checkpoint.Verifier{v}, nil
	}
	text, err := read(key, 64<<10)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%q is neither a file nor a public key: %w: %w", key, offline.ErrKeys, keyErr)
	}
	if err != nil {
		return nil, err
	}
	all, err := offline.ParseKeys(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	return all, nil
}

// read reads a file of at most limit bytes.
func read(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s: it has more than the %d bytes that such a file may have", path, limit)
	}
	return data, err
}

// hint is what to do about an error.
func hint(err error) string {
	switch {
	case errors.Is(err, offline.ErrNoKey):
		return "give the log's public key: --key KEY, or --key FILE"
	case errors.Is(err, offline.ErrPin):
		return "a pin is a checkpoint of the same log, signed by a key that --key names"
	case errors.Is(err, offline.ErrKeys):
		return "a key is one line, NAME+ID+KEY"
	case errors.Is(err, offline.ErrPruned), errors.Is(err, tiles.ErrProofFile):
		return "a proof is a file that begins with c2sp.org/tlog-proof@v1 and has the event in it"
	}
	return "name the directory of an export, or a proof; see parley-audit-verify --help"
}

func complain(errs io.Writer, err error, hint string) int {
	fmt.Fprintf(errs, "error: %s\n", visible.Text(err.Error()))
	if hint != "" {
		fmt.Fprintf(errs, "hint: %s\n", hint)
	}
	return exitUsage
}
