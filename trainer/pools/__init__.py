"""The shelf of pools: one public class a file, [B, C, H, W] -> [B, C]; the file's name is the pool's name."""
