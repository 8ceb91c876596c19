package main

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/parleymesh/parley/internal/dev"
	"github.com/parleymesh/parley/internal/identity"
)

func (a *app) devTokenCommand() *cobra.Command {
	var dir string
	var t identity.Token
	var ttl time.Duration
	cmd := &cobra.Command{
		Use: "token", Short: "make an access token for the shop, for development only",
		Long: `An access token (RFC 9068) of the issuer that parley dev serves on loopback,
signed with the key in its data directory: who may read that may make tokens.`,
		Example: `  parley dev token                              a token that may read orders
  parley dev token --scope shop.buy --sub bob    another one
  curl -H "Authorization: Bearer $(parley dev token)" ...`,
		Args: arguments(0, 0, "no arguments"),
		RunE: func(*cobra.Command, []string) error {
			if ttl < time.Second || ttl > dev.MaxTokenTTL {
				return usage("parley dev token --ttl 5m", "--ttl is between 1s and %s, not %s", dev.MaxTokenTTL, ttl)
			}
			token, err := dev.Token(dir, t, ttl, a.clock)
			if err != nil {
				return err
			}
			if a.term.JSON() {
				return a.term.Document("dev_token", map[string]any{"token": token, "expires_in": int(ttl.Seconds())})
			}
			a.term.Printf("%s\n", token)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&dir, "dir", ".parley", "data `directory` of parley dev")
	f.StringArrayVar(&t.Scopes, "scope", []string{"shop.read"}, "`scope` that it carries; may be repeated")
	f.StringArrayVar(&t.Audiences, "aud", []string{dev.ShopAudience}, "`audience` that it is for; may be repeated")
	f.StringVar(&t.Subject, "sub", dev.ShopSubject, "`subject` that it is of")
	f.DurationVar(&ttl, "ttl", dev.TokenTTL, "how `long` it is good")
	return cmd
}
