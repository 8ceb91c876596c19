package workload

import (
	"context"
	"encoding/json"
	"fmt"

	workloadpb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
)

// FetchJWTSVID mints a JWT-SVID for each of the process's identities, or for the
// one that is asked for (SPIFFE_Workload_API.md section 6.2.1).
func (s *Server) FetchJWTSVID(ctx context.Context, req *workloadpb.JWTSVIDRequest) (*workloadpb.JWTSVIDResponse, error) {
	c, err := current(ctx)
	if err != nil {
		return nil, err
	}
	ids, err := c.identities()
	if err != nil {
		return nil, err
	}
	if err := checkAudiences(req.Audience); err != nil {
		return nil, err
	}
	several := len(ids) > 1
	if req.SpiffeId != "" {
		if ids = only(ids, req.SpiffeId); len(ids) == 0 {
			return nil, status.Error(codes.PermissionDenied, "the SPIFFE ID is not this process's")
		}
	}
	resp := &workloadpb.JWTSVIDResponse{}
	for _, id := range ids {
		token, err := s.cfg.Backend.MintJWT(ctx, id.ID, req.Audience)
		if err != nil {
			s.cfg.Logger.Warn("workload API: no JWT-SVID", "id", id.ID.String(), "error", err)
			return nil, status.Error(codes.Unavailable, "the JWT-SVID could not be issued")
		}
		svid := &workloadpb.JWTSVID{SpiffeId: id.ID.String(), Svid: token}
		if several {
			svid.Hint = id.Hint
		}
		resp.Svids = append(resp.Svids, svid)
	}
	return resp, nil
}

// FetchJWTBundles streams the JWT keys of every trust domain that the process
// trusts (section 6.2.2).
func (s *Server) FetchJWTBundles(_ *workloadpb.JWTBundlesRequest, out grpc.ServerStreamingServer[workloadpb.JWTBundlesResponse]) error {
	c, err := current(out.Context())
	if err != nil {
		return err
	}
	var last *workloadpb.JWTBundlesResponse
	return c.follow(out.Context(), func(ids []Identity) error {
		msg := &workloadpb.JWTBundlesResponse{Bundles: map[string][]byte{}}
		for td, b := range bundles(ids) {
			jwks, err := s.cfg.Backend.MarshalBundle(b)
			if err != nil {
				s.cfg.Logger.Error("workload API: the bundle cannot be handed out", "trust_domain", td.String(), "error", err)
				return status.Error(codes.Internal, "the bundle cannot be handed out")
			}
			msg.Bundles[td.ID().String()] = jwks
		}
		if proto.Equal(msg, last) {
			return nil
		}
		last = msg
		return out.Send(msg)
	})
}

// ValidateJWTSVID judges a token for an audience on behalf of a process that has
// an identity (section 6.2.3).
func (s *Server) ValidateJWTSVID(ctx context.Context, req *workloadpb.ValidateJWTSVIDRequest) (*workloadpb.ValidateJWTSVIDResponse, error) {
	c, err := current(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := c.identities(); err != nil {
		return nil, err
	}
	if err := checkAudiences([]string{req.Audience}); err != nil {
		return nil, err
	}
	if req.Svid == "" {
		return nil, status.Error(codes.InvalidArgument, "svid is empty")
	}
	id, claims, err := s.cfg.Backend.ValidateJWT(ctx, req.Svid, req.Audience)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	fields, err := protoStruct(claims)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, "the claims cannot be represented")
	}
	return &workloadpb.ValidateJWTSVIDResponse{SpiffeId: id.String(), Claims: fields}, nil
}

// protoStruct goes through JSON, since claims may hold any type that decoding
// JSON makes, json.Number too.
func protoStruct(claims map[string]any) (*structpb.Struct, error) {
	b, err := json.Marshal(claims)
	if err != nil {
		return nil, err
	}
	s := &structpb.Struct{}
	return s, s.UnmarshalJSON(b)
}

func checkAudiences(audience []string) error {
	if len(audience) == 0 || len(audience) > maxAudiences {
		return status.Error(codes.InvalidArgument, fmt.Sprintf("a JWT-SVID has 1 to %d audiences", maxAudiences))
	}
	for _, a := range audience {
		if a == "" || len(a) > maxAudience {
			return status.Error(codes.InvalidArgument, fmt.Sprintf("an audience has 1 to %d bytes", maxAudience))
		}
	}
	return nil
}

func only(ids []Identity, id string) []Identity {
	for i := range ids {
		if ids[i].ID.String() == id {
			return ids[i : i+1]
		}
	}
	return nil
}
