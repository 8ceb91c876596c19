package main

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/parleymesh/parley/cmd/parley/term"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/dev"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/logging"
)

// defaultMesh is the mesh file that `parley dev` takes up by itself.
const defaultMesh = "parley.yaml"

// runDev is the body of `parley dev`.
func runDev(ctx context.Context, o devOptions) error {
	cfg, err := devConfig(o)
	if err != nil {
		return err
	}
	t := o.Terminal
	t.Notef("parley %s - a whole mesh on this machine, for development only\n", version().Version)
	began := cfg.Clock.Now()
	starting, stopProgress := context.WithCancel(ctx)
	stop := t.Progress(starting, cfg.Clock, "starting")
	m, err := dev.Start(ctx, cfg)
	stop()
	stopProgress()
	if err != nil {
		return err
	}
	return errors.Join(present(ctx, o, m, cfg.Clock.Now().Sub(began)), m.Stop(context.WithoutCancel(ctx)))
}

// present shows the mesh and then tries it, or waits for the interrupt.
func present(ctx context.Context, o devOptions, m *dev.Mesh, took time.Duration) error {
	if o.Try {
		for _, n := range m.Notes {
			o.Terminal.Notef("%s\n", n)
		}
		return tryDev(ctx, o.Terminal, m)
	}
	// What was started is shown even to somebody who stops it at once.
	if err := showDev(context.WithoutCancel(ctx), o, m, took); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		kept := "identities and history stay in " + m.Dir
		if o.Store != "" {
			kept = "identities stay in " + m.Dir + ", the history in the database"
		}
		o.Terminal.Notef("\nstopping: applications, then connections in flight; %s\n", kept)
		return nil
	case <-m.Done():
		return m.Err()
	}
}

// devConfig turns what was asked for into what is started.
func devConfig(o devOptions) (dev.Config, error) {
	cfg := dev.Config{
		Dir: o.Dir, Store: o.Store, Command: o.command(), Fresh: o.Fresh, Try: o.Try, PortBase: o.PortBase, Metrics: o.Metrics, Version: version().wire(),
		Env: withoutPG(os.Environ()), Clock: clock.System{}, Debug: o.debug,
		Logger: o.Logger,
	}
	var err error
	if cfg.Self, err = os.Executable(); err != nil {
		return cfg, err
	}
	name := o.MeshFile
	if name == "" && !o.Try {
		name = defaultMesh
	}
	if name == "" {
		return cfg, nil
	}
	text, shown, err := readMesh(nil, name, "name another: parley dev -f FILE")
	if errors.Is(err, fs.ErrNotExist) && o.MeshFile == "" {
		return cfg, nil
	}
	if err != nil {
		return cfg, err
	}
	if strings.TrimSpace(text) == "" {
		return cfg, fault.New(fault.MeshSyntax, "parley dev, without a file, shows a whole one", "the mesh file %s is empty", name)
	}
	if o.PortBase != 0 {
		return cfg, usage("leave --port-base out, or run it where there is no "+defaultMesh,
			"--port-base moves the ports of the built-in shop, and %s is run instead", local(shown))
	}
	cfg.MeshName, cfg.MeshText = shown, text
	return cfg, nil
}

// withoutPG is env without what is for the database: its password is none of the
// applications' business.
func withoutPG(env []string) []string {
	return slices.DeleteFunc(env, func(v string) bool { return strings.HasPrefix(v, "PG") })
}

// tryDev makes the calls of the tour.
func tryDev(ctx context.Context, t *term.Terminal, m *dev.Mesh) error {
	all, refused := dev.Calls()
	if !t.JSON() {
		t.Printf("%d calls through the mesh just started. %d must pass, %d must be refused.\n\n", all, all-refused, refused)
	}
	stream := t.Stream([]term.Column{{Stream: 2}, {Title: "CALL", Stream: 46}, {Title: "EXPECTED", Stream: 8}, {Title: "SEEN", Stream: 40}})
	if !t.JSON() {
		stream.Row("", "CALL", "EXPECTED", "SEEN")
	}
	lines := []dev.Line{}
	began := m.Now()
	ok, err := m.Try(ctx, func(l dev.Line) {
		lines = append(lines, l)
		if t.JSON() {
			return
		}
		mark := term.OK
		if !l.OK {
			mark = term.No
		}
		stream.Row(mark, l.Call, l.Expected, l.Seen)
		for _, w := range slices.Concat(l.Detail, l.Wrong) {
			t.Printf("        %s\n", w)
		}
	})
	if err != nil {
		return err
	}
	if t.JSON() {
		err = t.Document("dev_try", map[string]any{"ok": ok, "calls": lines})
	} else {
		sayTried(t, m, lines, ok, m.Now().Sub(began))
	}
	if err == nil && !ok {
		err = errNo
	}
	return err
}

func sayTried(t *term.Terminal, m *dev.Mesh, lines []dev.Line, ok bool, took time.Duration) {
	wrong, last := 0, ""
	for _, l := range lines {
		if !l.OK {
			wrong++
		}
		if l.OK && l.Decision != "" {
			last = l.Decision
		}
	}
	if !ok {
		t.Printf("\n%s %d of %d calls were not as expected. Each line above says what differed.\n", t.Paint(term.Bad, "FAIL"), wrong, len(lines))
		return
	}
	t.Printf("\nAll %d as expected, in %s; both ends of each call are on record.\n", len(lines), term.Span(took))
	t.Printf("Look into one refusal, with `parley dev` running:  %s why %s\n", m.Command(), last)
}

// showDev says what runs, and what to try.
func showDev(ctx context.Context, o devOptions, m *dev.Mesh, took time.Duration) error {
	t := o.Terminal
	st, err := m.API.Status(ctx)
	if err != nil {
		return err
	}
	if t.JSON() {
		return t.Document("dev", map[string]any{
			"dir": m.Dir, "notes": slices.Concat([]string{}, m.Notes), "api": m.API.Socket(), "workload_api": "unix://" + m.Socket, "demo": m.Demo, "status": st, "commands": m.Commands(),
		})
	}
	tab := &term.Table{Columns: []term.Column{{Title: ""}, {Title: "WHAT"}, {Title: "IDENTITY"}, {Title: "WHERE"}}}
	for _, g := range st.Gateways {
		tab.Row(term.OK, "gateway "+g.Name, g.ID, "https://"+g.Listen)
	}
	for _, s := range st.Services {
		where, mark := "", term.OK
		for _, l := range st.Listeners {
			if l.Owner == s.Name && l.End == "inbound" {
				where = l.Address + " for " + l.Target
			}
			if l.Owner == s.Name && l.State != api.StateOK {
				mark, where = term.No, l.Note
			}
		}
		tab.Row(mark, s.Name, s.ID, where)
	}
	t.Table(tab)
	t.Printf("\n  admin API      %s\n  Workload API   unix://%s\n", m.API.Socket(), m.Socket)
	if m.MetricsURL() != "" {
		t.Printf("  metrics        %s\n", m.MetricsURL())
	}
	t.Printf("  mesh file      %s\n", m.File)
	for _, p := range m.Applied.Ports {
		t.Printf("  %-14s %s reaches %s at 127.0.0.1:%d\n", "", p.From, p.To, p.Port)
	}
	t.Printf("ready in %.1fs\n", took.Seconds())
	for _, n := range m.Notes {
		t.Printf("%s  %s\n", t.Mark(term.Look), n)
	}
	t.Printf("\nTry\n")
	for _, c := range m.Commands() {
		t.Printf("  # %s\n  %s\n", c.What, c.Line)
	}
	again := o.command() + " --fresh"
	if o.Store != "" {
		again = "another --dir and another database"
	}
	t.Printf("\nCtrl-C stops it and keeps the identities. Start over with: %s\n", again)
	return nil
}

// runDevApp is the body of `parley dev app`: a process of the shop.
func runDevApp(ctx context.Context, name string) error {
	var cfg dev.AppConfig
	if err := json.Unmarshal([]byte(os.Getenv(dev.AppEnv)), &cfg); err != nil || cfg.Name != name {
		return fault.New(fault.Usage, "parley dev", "the applications of the shop are started by `parley dev`")
	}
	return dev.RunApp(ctx, cfg, os.Stdin, os.Stdout, logging.New(os.Stderr, logging.Text, slog.LevelInfo, clock.System{}))
}
