package workload

import (
	"crypto/x509"

	workloadpb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/parleymesh/parley/internal/identity"
)

// FetchX509SVID streams the process's X509-SVIDs with their keys and bundles
// (SPIFFE_Workload_API.md section 5.2.1). Where none has been issued yet, the
// first message waits for it.
func (s *Server) FetchX509SVID(_ *workloadpb.X509SVIDRequest, out grpc.ServerStreamingServer[workloadpb.X509SVIDResponse]) error {
	c, err := current(out.Context())
	if err != nil {
		return err
	}
	var last *workloadpb.X509SVIDResponse
	return c.follow(out.Context(), func(ids []Identity) error {
		msg, creds, err := s.svids(ids)
		if err != nil || len(creds) == 0 || proto.Equal(msg, last) {
			return err
		}
		for _, cred := range creds {
			c.note(cred)
		}
		last = msg
		return out.Send(msg)
	})
}

// svids is the full state. An identity without a credential is left out until
// it has one.
func (s *Server) svids(ids []Identity) (*workloadpb.X509SVIDResponse, []*identity.Credential, error) {
	msg := &workloadpb.X509SVIDResponse{}
	var creds []*identity.Credential
	own := map[identity.TrustDomain]bool{}
	for _, id := range ids {
		cred, err := id.Source.Credential()
		if err != nil {
			s.cfg.Logger.Debug("workload API: no credential yet", "id", id.ID.String(), "error", err)
			continue
		}
		key, err := x509.MarshalPKCS8PrivateKey(cred.Key)
		if err != nil {
			s.cfg.Logger.Error("workload API: the key cannot be handed out", "id", id.ID.String(), "error", err)
			return nil, nil, status.Error(codes.Internal, "the key cannot be handed out")
		}
		svid := &workloadpb.X509SVID{SpiffeId: cred.ID.String(), X509Svid: der(cred.Chain), X509SvidKey: key}
		if b := bundle(id, cred.ID.TrustDomain()); b != nil {
			svid.Bundle = der(b.Roots)
		}
		if len(ids) > 1 {
			svid.Hint = id.Hint
		}
		own[cred.ID.TrustDomain()] = true
		msg.Svids = append(msg.Svids, svid)
		creds = append(creds, cred)
	}
	for td, b := range bundles(ids) {
		if !own[td] {
			if msg.FederatedBundles == nil {
				msg.FederatedBundles = map[string][]byte{}
			}
			msg.FederatedBundles[td.ID().String()] = der(b.Roots)
		}
	}
	return msg, creds, nil
}

// FetchX509Bundles streams the roots of every trust domain that the process
// trusts (section 5.2.2).
func (s *Server) FetchX509Bundles(_ *workloadpb.X509BundlesRequest, out grpc.ServerStreamingServer[workloadpb.X509BundlesResponse]) error {
	c, err := current(out.Context())
	if err != nil {
		return err
	}
	var last *workloadpb.X509BundlesResponse
	return c.follow(out.Context(), func(ids []Identity) error {
		msg := &workloadpb.X509BundlesResponse{Bundles: map[string][]byte{}}
		for td, b := range bundles(ids) {
			msg.Bundles[td.ID().String()] = der(b.Roots)
		}
		if proto.Equal(msg, last) {
			return nil
		}
		last = msg
		return out.Send(msg)
	})
}

func bundle(id Identity, td identity.TrustDomain) *identity.Bundle {
	if t := id.Source.Trust(); t != nil {
		return t.Bundles[td]
	}
	return nil
}

// bundles are those of all the process's identities.
func bundles(ids []Identity) map[identity.TrustDomain]*identity.Bundle {
	all := map[identity.TrustDomain]*identity.Bundle{}
	for _, id := range ids {
		if t := id.Source.Trust(); t != nil {
			for td, b := range t.Bundles {
				all[td] = b
			}
		}
	}
	return all
}

// der is certificates one after another, as every field of the protocol has them.
func der(certs []*x509.Certificate) (b []byte) {
	for _, c := range certs {
		b = append(b, c.Raw...)
	}
	return b
}
